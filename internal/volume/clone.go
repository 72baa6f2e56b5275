package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/go-git/go-git/v5/plumbing/transport/client"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"
)

// CloneMain is the program that runs inside the sandbox. It gives the exit code; what went wrong is one line on stderr.
func CloneMain(ctx context.Context, getenv func(string) string, stderr io.Writer) int {
	var c Clone
	err := json.Unmarshal([]byte(getenv(cloneEnv)), &c)
	if err == nil {
		err = c.run(ctx, CloneTarget)
	}
	if err != nil {
		fmt.Fprintf(stderr, "clone %s: %v\n", redact(c.Repository), redactIn(err, c.Repository))
		return 1
	}
	return 0
}

var errTooLarge = errors.New("the repository is larger than the limit")

// run clones into target. Without a revision the newest state of the default branch is enough.
func (c *Clone) run(ctx context.Context, target string) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	onlyHTTP(&http.Client{Transport: &meter{next: http.DefaultTransport, left: c.MaxBytes}})
	var wg sync.WaitGroup
	defer wg.Wait()
	watch, end := context.WithCancel(ctx)
	defer end()
	wg.Go(func() { c.watchSize(watch, target, stop) })

	opts := &git.CloneOptions{URL: c.Repository, NoCheckout: c.Revision != "", Tags: git.AllTags, RecurseSubmodules: git.NoRecurseSubmodules}
	if c.Revision == "" {
		opts.Depth, opts.SingleBranch, opts.Tags = 1, true, git.NoTags
	}
	repo, err := git.PlainCloneContext(ctx, filepath.Join(target, c.Directory), false, opts)
	if err == nil && c.Revision != "" {
		err = checkout(repo, c.Revision)
	}
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, errTooLarge) {
		return fmt.Errorf("%w of %d bytes", errTooLarge, c.MaxBytes)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("not complete after %s", c.Timeout)
	}
	return err
}

// onlyHTTP takes away every transport but the two that reach a server over the network.
func onlyHTTP(h *http.Client) {
	for _, scheme := range []string{"file", "git", "ssh"} {
		client.InstallProtocol(scheme, nil)
	}
	var t transport.Transport = githttp.NewClient(h)
	client.InstallProtocol("http", t)
	client.InstallProtocol("https", t)
}

// checkout finds a commit, tag or branch.
func checkout(repo *git.Repository, revision string) error {
	for _, name := range []string{"refs/remotes/origin/" + revision, "refs/tags/" + revision, revision} {
		hash, err := repo.ResolveRevision(plumbing.Revision(name))
		if err != nil {
			continue
		}
		tree, err := repo.Worktree()
		if err != nil {
			return err
		}
		return tree.Checkout(&git.CheckoutOptions{Hash: *hash, Force: true})
	}
	return fmt.Errorf("revision %q is no commit, tag or branch of it", revision)
}

// watchSize ends the clone when what it has written is too much.
func (c *Clone) watchSize(ctx context.Context, target string, stop context.CancelCauseFunc) {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if size, err := Size(ctx, target); err == nil && size > c.MaxBytes {
				stop(errTooLarge)
				return
			}
		}
	}
}

// meter ends a download that is too large.
type meter struct {
	next http.RoundTripper
	mu   sync.Mutex // guards left
	left int64
}

// RoundTrip sends one request.
func (m *meter) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := m.next.RoundTrip(r)
	if err == nil {
		resp.Body = &meteredBody{ReadCloser: resp.Body, m: m}
	}
	return resp, err
}

type meteredBody struct {
	io.ReadCloser
	m *meter
}

// Read counts.
func (b *meteredBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	if b.m.left -= int64(n); b.m.left < 0 {
		return 0, errTooLarge
	}
	return n, err
}

// redact hides the password of an address.
func redact(repository string) string {
	u, err := url.Parse(repository)
	if err != nil {
		return "repository"
	}
	return u.Redacted()
}

// redactIn hides it in messages of libraries.
func redactIn(err error, repository string) string {
	msg := strings.ReplaceAll(err.Error(), repository, redact(repository))
	if u, parseErr := url.Parse(repository); parseErr == nil && u.User != nil {
		if p, ok := u.User.Password(); ok && p != "" {
			msg = strings.ReplaceAll(msg, p, "xxxxx")
		}
		msg = strings.ReplaceAll(msg, u.User.String(), "xxxxx")
	}
	return msg
}
