// Command sample is the web server of the sample group that 'make up' starts.
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"sync/atomic"
)

func main() {
	log.SetFlags(log.Ltime)
	host, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	var served atomic.Int64
	http.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		from, _, _ := net.SplitHostPort(r.RemoteAddr) // "" for an odd address
		log.Printf("GET %s from %s", r.URL.Path, from)
		fmt.Fprintf(w, "Hello from container group %s: request %d.\n", host, served.Add(1))
	})
	http.HandleFunc("GET /healthy", func(http.ResponseWriter, *http.Request) {}) // for probes: 200, and silent
	log.Printf("sample %s listens on port 80", host)
	log.Fatal(http.ListenAndServe(":80", nil))
}
