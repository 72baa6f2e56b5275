package httpapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

func (a *api) listHosts(c *call) error {
	hosts := a.Controller.Hosts()
	if hosts == nil {
		hosts = []host.Host{}
	}
	return c.answer(http.StatusOK, page{Value: hosts})
}

func (a *api) getHost(c *call) error {
	h, err := a.Controller.DescribeHost(c.params["host"])
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, h)
}

func (a *api) cordon(c *call) error { return a.setCordon(c, true) }

func (a *api) uncordon(c *call) error { return a.setCordon(c, false) }

func (a *api) setCordon(c *call, on bool) error {
	h, err := a.Controller.Cordon(c.r.Context(), c.params["host"], on)
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, h)
}

func (a *api) drain(c *call) error {
	h, err := a.Controller.Drain(c.r.Context(), c.params["host"])
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, h)
}

// namedLink is a link with the name of its host.
type namedLink struct {
	name string
	host.Link
}

// imageHosts are the hosts that an image call is about: the one in ?host=, else all.
func (a *api) imageHosts(c *call) ([]namedLink, error) {
	if name := c.query("host"); name != "" {
		if _, err := a.Controller.DescribeHost(name); err != nil {
			return nil, err
		}
		l, ok := a.Controller.Host(name)
		if !ok {
			return nil, fault.New(fault.Unavailable, "HostNotConnected", "The host '%s' is not connected.", name)
		}
		return []namedLink{{name, l}}, nil
	}
	var out []namedLink
	for _, h := range a.Controller.Hosts() {
		if l, ok := a.Controller.Host(h.Name); ok {
			out = append(out, namedLink{h.Name, l})
		}
	}
	if out == nil {
		return nil, fault.New(fault.Unavailable, "HostNotConnected", "No host is connected.")
	}
	return out, nil
}

func (a *api) listImages(c *call) error {
	links, err := a.imageHosts(c)
	if err != nil {
		return err
	}
	type item struct {
		host.Image
		Host string `json:"host"`
	}
	items := []item{}
	for _, l := range links {
		images, err := l.Images(c.r.Context())
		if err != nil {
			return err
		}
		for _, i := range images {
			items = append(items, item{i, l.name})
		}
	}
	return c.answer(http.StatusOK, page{Value: items})
}

func (a *api) removeImage(c *call) error {
	ref := c.query("image")
	if _, err := arm.ParseImageRef(ref); err != nil {
		return fault.New(fault.Invalid, "InvalidImageReference", "The query parameter 'image' is malformed: %v.", err)
	}
	links, err := a.imageHosts(c)
	if err != nil {
		return err
	}
	removed := false
	for _, l := range links {
		switch err := l.RemoveImage(c.r.Context(), ref); {
		case err == nil:
			removed = true
		case fault.KindOf(err) != fault.NotFound:
			return err
		}
	}
	if !removed {
		return fault.New(fault.NotFound, "ImageNotFound", "The image %s is on no host. 'spillway image ls' lists those that are.", quoted(ref))
	}
	return c.empty(http.StatusNoContent)
}

// pullImage fetches an image on the hosts and tells of the progress line by line.
func (a *api) pullImage(c *call) error {
	var body struct {
		Image       string                     `json:"image"`
		Credentials []group.RegistryCredential `json:"imageRegistryCredentials"`
	}
	if err := c.decode(&body); err != nil {
		return err
	}
	if _, err := arm.ParseImageRef(body.Image); err != nil {
		return &fault.Error{Kind: fault.Invalid, Code: "InvalidImageReference", Target: "image", Message: "The image " + quoted(body.Image) + " is malformed: " + err.Error() + "."}
	}
	links, err := a.imageHosts(c)
	if err != nil {
		return err
	}
	done, err := a.openStream()
	if err != nil {
		return err
	}
	defer done()
	c.w.Header().Set("Content-Type", "application/x-ndjson")
	c.w.WriteHeader(http.StatusOK)
	out := &lineWriter{c: c, control: http.NewResponseController(c.w)}
	var mu sync.Mutex // guards out: layers come in parallel
	say := func(v any) {
		mu.Lock()
		defer mu.Unlock()
		out.add(v)
		out.flush()
	}
	for _, l := range links {
		image, err := l.PullImage(c.r.Context(), body.Image, body.Credentials, func(p host.Progress) {
			say(map[string]any{"host": l.name, "progress": p})
		})
		if err != nil {
			say(map[string]any{"host": l.name, "error": result(0, err).Error})
			return nil
		}
		say(map[string]any{"host": l.name, "image": image})
	}
	return nil
}

// importImage streams one archive to all the hosts at once.
func (a *api) importImage(c *call) error {
	links, err := a.imageHosts(c)
	if err != nil {
		return err
	}
	done, err := a.openStream()
	if err != nil {
		return err
	}
	defer done()
	images, err := importAll(c.r.Context(), links, c.r.Body)
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, page{Value: images})
}

// importAll copies an archive to every host and gives the images of the first.
func importAll(ctx context.Context, links []namedLink, archive io.Reader) ([]host.Image, error) {
	var wg sync.WaitGroup
	images := make([][]host.Image, len(links))
	errs := make([]error, len(links))
	writers := make([]io.Writer, len(links))
	pipes := make([]*io.PipeWriter, len(links))
	for i, l := range links {
		r, w := io.Pipe()
		writers[i], pipes[i] = w, w
		wg.Go(func() {
			images[i], errs[i] = l.ImportImage(ctx, r)
			if errs[i] == nil {
				_, _ = io.Copy(io.Discard, r) // what follows the archive's end must not stop the other hosts
			}
			_ = r.CloseWithError(errs[i])
		})
	}
	_, err := io.Copy(io.MultiWriter(writers...), archive)
	for _, p := range pipes {
		_ = p.CloseWithError(err) // nil means the end of the archive
	}
	wg.Wait()
	for _, failed := range errs {
		if failed != nil {
			return nil, failed
		}
	}
	if err != nil && !errors.Is(err, io.ErrClosedPipe) {
		return nil, fault.New(fault.Invalid, "", "The archive broke off: %v.", err)
	}
	return images[0], nil
}
