# The names of what can be made; each is a line here or a script in hack/. 'make up' and 'make test' are all you need.
SHELL := /bin/bash
GO    ?= go
export CGO_ENABLED = 0
LDFLAGS = -s -w

.PHONY: build platform kubernetes conformance up down purge test soak chaos compat mutants setup runsc generate vet race fuzz bench man clean need

build: platform ## bin/spillway and bin/spillway-node
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/spillway-node ./cmd/spillway-node

platform: need ## bin/spillway, which carries its keeper
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o internal/runtime/embed/spillway-keeper ./cmd/spillway-keeper
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/spillway ./cmd/spillway

need:
	@hack/need.sh build

# Upstream's own version, which its components report.
KUBERNETES = v1.36.3
KUBERNETES_LDFLAGS = $(LDFLAGS) $(foreach p,k8s.io/component-base/version k8s.io/client-go/pkg/version,-X $(p).gitVersion=$(KUBERNETES) -X $(p).gitMajor=1 -X $(p).gitMinor=36)

.PHONY: kubernetes-ldflags
kubernetes-ldflags:
	@echo "$(KUBERNETES_LDFLAGS)"

kubernetes: need ## what 'spillway up --kubernetes' starts: bin/spillway-kubernetes (its first build takes some minutes), coredns, metrics-server
	@mkdir -p bin
	cd kubernetes && $(GO) build -trimpath -ldflags '$(KUBERNETES_LDFLAGS)' -o ../bin/spillway-kubernetes ./cmd/spillway-kubernetes
	cd kubernetes/coredns && $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o ../../bin/coredns .
	cd kubernetes/metrics && $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o ../../bin/metrics-server sigs.k8s.io/metrics-server/cmd/metrics-server

up: ## build, start the platform in the background, run the sample group
	@hack/need.sh up
	@$(MAKE) --no-print-directory platform
	@hack/up.sh

down: ## stop the platform; groups go on
	@hack/down.sh

purge: ## stop the platform and remove every group, mount, namespace, rule and file of it
	@hack/down.sh purge

setup: ## install what the tests use
	@hack/setup.sh

runsc: ## bin/runsc: gVisor, for groups with --isolation gvisor
	@hack/runsc.sh

test: setup ## every test that this machine can run; SOAK=10m soaks longer
	@$(MAKE) --no-print-directory build
	@hack/test.sh $(SOAK)

soak: setup ## use the platform at random while its processes are killed; SOAK=1h, SPILLWAY_SEED=N repeats
	SPILLWAY_SOAK=$(or $(SOAK),60s) $(GO) test ./test -run '^TestSoak$$' -count 1 -v -timeout 0

chaos: setup ## three servers and five hosts under random faults, with counts; CHAOS=1h, SPILLWAY_SEED=N repeats
	@$(MAKE) --no-print-directory build
	SPILLWAY_CHAOS=$(or $(CHAOS),10m) $(GO) test ./test -run '^TestChaos$$' -count 1 -v -timeout 0

compat: setup ## fleets with agents of an earlier release; OLD=the absolute path of a directory with its spillway and spillway-keeper
	@$(MAKE) --no-print-directory build
	SPILLWAY_OLD=$(OLD) $(GO) test ./test -run '^(TestFleet|TestNetworkOverHosts|TestFenced|TestServers|TestRolling|TestChaos)' -count 1 -v -timeout 30m

mutants: ## break invariants of the fleet one at a time, and look whether the tests notice
	$(GO) run ./hack/mutants

conformance: ## Kubernetes' node conformance tests on two virtual nodes; SUITE=all for every conformance test
	@hack/conformance.sh $(or $(SUITE),node)

vet: ## go vet
	$(GO) vet ./...

man: build ## manual pages in build/man
	@bin/spillway man build/man && echo "build/man: $$(ls build/man | wc -l) pages; man -l build/man/spillway.1"

clean: ## what was built
	rm -rf bin build internal/runtime/embed/spillway-keeper
