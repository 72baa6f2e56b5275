package tidy

// Exceptions from the rules, each with its reason.

// longFiles have more lines than a file should.
var longFiles = map[string]string{}

// longFunctions have more lines than a function should.
var longFunctions = map[string]string{
	"platform.site.run": "the wiring of the whole platform, meant to be read from top to bottom",
}

// manyParams have more parameters than a function should.
var manyParams = map[string]string{
	"bench.newCrun":         "what differs between the two runtimes that share a bundle",
	"cli.Run":               "everything of the outside world that a program touches, as tests give it",
	"converge.Memory.Event": "an event as it is written down: when, what, whose",
	"group.AddEvent":        "an event as it is written down: when, what, whose",
	"keeper.appendLine":     "the log format's fields, without an allocation for each line",
	"network.encodeSet":     "the fields of one kernel message",

	"virtualnode.session.ExecInContainer": "the shape that the streaming library calls",
	"virtualnode.session.AttachContainer": "the shape that the streaming library calls",
}

// wideInterfaces have more methods than an interface should.
var wideInterfaces = map[string]string{
	"host.Link": "everything that a server can ask of a host: the seam where machines part",
}

// foreignText is found where it belongs all the same.
var foreignText = map[string]string{
	"internal/image/registry.go: registry-1.docker.io":       "the machine behind the name docker.io, which no redirect tells",
	"internal/tidy/exceptions_test.go: registry-1.docker.io": "the exception above names what it allows",
}
