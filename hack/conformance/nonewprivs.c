/* Prints the effective user: set-uid programs show with it whether they may raise their privileges. */
#include <stdio.h>
#include <unistd.h>

int main(void) {
	printf("Effective uid: %d\n", geteuid());
	return 0;
}
