// Package hostlink carries host.Link over a network: the server's end and the host's end of one gRPC stream per host.
//
// The host dials. Both sides show certificates of the platform's authority; the host's name is read from its own, and
// from nothing that it says. Wishes go down, statuses come up, each side keeps only the newest of what the other has not
// taken yet. Bytes (logs, exec, images) go over a stream each, which the host opens when it is given a ticket: a
// server never dials a host, and no caller's token ever reaches one.
//
// Every connection begins with the term of the server's leadership. A host remembers the highest that it has seen and
// listens to no older one, so that a leader who was paused and comes back can change nothing.
//
// Messages are JSON: a field that one side does not know yet is ignored, so that neighbouring releases understand each
// other. It must never interpret what groups are, nor trust what a host reports further than Check says. Start at
// wire.go; server.go and remote.go are the server's end, client.go and serve.go the host's.
package hostlink
