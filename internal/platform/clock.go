package platform

import (
	"os"
	"strings"
	"time"
)

// clockVariable names a file for tests that let clocks jump: what it says, as a duration, is added to the time that this
// machine's clock shows.
const clockVariable = "SPILLWAY_CLOCK"

// wallClock is the clock that people set: hosts and servers compare theirs. Durations are never taken from it.
func (c *Config) wallClock() func() time.Time {
	path := c.Getenv(clockVariable)
	if path == "" {
		return time.Now
	}
	return func() time.Time {
		body, err := os.ReadFile(path)
		if err != nil {
			return time.Now()
		}
		jump, _ := time.ParseDuration(strings.TrimSpace(string(body))) // half written: it has not jumped yet
		return time.Now().Add(jump)
	}
}
