package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

func (a *app) imageCommand() *cobra.Command {
	return family("image", "Images on the hosts", a.imageListCommand(), a.imagePullCommand(), a.imageImportCommand(), a.imageRemoveCommand())
}

func (a *app) imageListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List images", Args: none,
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := a.client()
			if err != nil {
				return err
			}
			list, err := api.Images(c.Context())
			if err != nil {
				return err
			}
			if list == nil {
				list = []client.HostImage{}
			}
			v := view{data: list, header: []string{"IMAGE", "DIGEST", "SIZE", "GROUPS", "HOST"}}
			for _, i := range list {
				v.rows = append(v.rows, []string{i.Ref, a.digestText(i.Digest), bytesText(i.Size), strconv.Itoa(i.InUse), i.Host})
			}
			return a.emit(v)
		},
	}
}

func (a *app) imagePullCommand() *cobra.Command {
	var cred group.RegistryCredential
	c := &cobra.Command{
		Use: "pull REF", Short: "Fetch an image onto every host", Args: names("the REF of an image", 1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.client()
			if err != nil {
				return err
			}
			var creds []group.RegistryCredential
			if cred.Server != "" {
				if cred.Password == "" {
					cred.Password = a.getenv("SPILLWAY_REGISTRY_PASSWORD")
				}
				creds = append(creds, cred)
			}
			img, err := api.PullImage(c.Context(), args[0], creds, a.bars().tell)
			if err != nil {
				return err
			}
			return a.emit(a.imagesView([]host.Image{*img}, img))
		},
	}
	c.Flags().StringVar(&cred.Server, "registry-server", "", "registry that needs a login")
	c.Flags().StringVar(&cred.Username, "registry-username", "", "user name for it")
	c.Flags().StringVar(&cred.Password, "registry-password", "", "password for it (default $SPILLWAY_REGISTRY_PASSWORD)")
	return c
}

func (a *app) imagesView(list []host.Image, data any) view {
	v := view{data: data, header: []string{"IMAGE", "DIGEST", "SIZE"}}
	for _, i := range list {
		v.rows = append(v.rows, []string{i.Ref, a.digestText(i.Digest), bytesText(i.Size)})
	}
	return v
}

// digestText is short in a table, where people look, and whole where programs do.
func (a *app) digestText(digest string) string {
	if a.output != "table" {
		return digest
	}
	return clip(strings.TrimPrefix(digest, "sha256:"), 12)
}

func (a *app) imageImportCommand() *cobra.Command {
	return &cobra.Command{
		Use: "import FILE", Short: "Read a docker archive or OCI archive onto every host",
		Long: "Read a docker archive (docker save) or an OCI archive, compressed or not, onto every host. - is standard input.",
		Args: names("the FILE of an archive", 1, 1),
		RunE: func(c *cobra.Command, args []string) error { return a.importImage(c.Context(), args[0]) },
	}
}

func (a *app) importImage(ctx context.Context, file string) error {
	r, size := a.stdin, int64(0)
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return usagef("file %s cannot be read: %v", file, errors.Unwrap(err))
		}
		defer f.Close()
		if fi, err := f.Stat(); err == nil {
			size = fi.Size()
		}
		r = f
	}
	api, err := a.client()
	if err != nil {
		return err
	}
	line := a.statusLine()
	defer line.clear()
	list, err := api.ImportImage(ctx, &counting{r: io.Reader(r), tell: func(done int64) {
		if size > 0 {
			line.set(fmt.Sprintf("sending %s of %s", bytesText(done), bytesText(size)))
		}
	}})
	if err != nil {
		return err
	}
	line.clear()
	return a.emit(a.imagesView(list, list))
}

func (a *app) imageRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm REF...", Short: "Remove images from every host", Args: names("the REF of an image", 1, 0), ValidArgsFunction: a.imageRefs,
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.client()
			if err != nil {
				return err
			}
			var failed []error
			for _, ref := range args {
				if err := api.RemoveImage(c.Context(), ref); err != nil {
					failed = append(failed, err)
					continue
				}
				fmt.Fprintln(a.stdout, ref)
			}
			return errors.Join(failed...)
		},
	}
}
