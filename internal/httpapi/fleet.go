package httpapi

import (
	"net/http"
	"time"

	"spillway.dev/spillway/internal/controller"
	"spillway.dev/spillway/internal/fault"
)

// Fleet is what the API needs so that hosts can join. Its functions are of packages that know certificates.
type Fleet struct {
	// Token is the whole text of a join token, of its secret.
	Token func(secret string) string
	// Sign makes the certificate of a host. Errors: of its signing request.
	Sign func(name, uid, csrPEM string) (certPEM []byte, serial string, err error)
	// CheckName says whether a host may be called so.
	CheckName func(name string) error
	Authority string          // certificate of the authority, PEM
	Servers   func() []string // HOST:PORT to which hosts connect
	Network   string          // the groups' addresses on all hosts
	// Forget ends the connection of a host that was removed.
	Forget func(name string)
}

// fleet refuses what only a platform with more than one host can do.
func (a *api) fleet() (*Fleet, error) {
	if a.Fleet == nil {
		return nil, fault.New(fault.Conflict, "NoFleet", "This platform takes no further hosts. Start it with --hosts-listen HOST:PORT, where they connect.")
	}
	return a.Fleet, nil
}

// createToken makes a join token.
func (a *api) createToken(c *call) error {
	f, err := a.fleet()
	if err != nil {
		return err
	}
	var want struct {
		Host        string `json:"host"`
		Pool        string `json:"pool"`
		LifeSeconds int64  `json:"lifeSeconds"`
	}
	if err := c.decode(&want); err != nil {
		return err
	}
	for _, name := range []string{want.Host, want.Pool} {
		if name == "" {
			continue
		}
		if err := f.CheckName(name); err != nil {
			return fault.New(fault.Invalid, "InvalidHostName", "The %v.", err)
		}
	}
	t, secret, err := a.Controller.CreateToken(c.r.Context(), controller.JoinToken{Host: want.Host, Pool: want.Pool}, time.Duration(want.LifeSeconds)*time.Second)
	if err != nil {
		return err
	}
	return c.answer(http.StatusCreated, map[string]any{"id": t.ID, "token": f.Token(secret), "host": t.Host, "pool": t.Pool, "expires": t.Expires})
}

// join takes a host into the fleet. The token in the body is all the right that it needs.
func (a *api) join(c *call) error {
	f, err := a.fleet()
	if err != nil {
		return err
	}
	var want struct {
		Token string `json:"token"`
		CSR   string `json:"csr"`
	}
	if err := c.decode(&want); err != nil {
		return err
	}
	name := c.params["host"]
	if err := f.CheckName(name); err != nil {
		return fault.New(fault.Invalid, "InvalidHostName", "The %v.", err)
	}
	cert, err := a.Controller.Join(c.r.Context(), controller.Joining{Token: want.Token, Name: name, Sign: func(uid string) ([]byte, string, error) {
		cert, serial, err := f.Sign(name, uid, want.CSR)
		if err != nil {
			return nil, "", fault.New(fault.Invalid, "InvalidSigningRequest", "The signing request in 'csr' is invalid: %v.", err)
		}
		return cert, serial, nil
	}})
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, map[string]any{"certificate": string(cert), "authority": f.Authority, "servers": f.Servers(), "network": f.Network})
}

// removeHost forgets a host.
func (a *api) removeHost(c *call) error {
	h, err := a.Controller.RemoveHost(c.r.Context(), c.params["host"])
	if err != nil {
		return err
	}
	if a.Fleet != nil {
		a.Fleet.Forget(h.Name)
	}
	return c.answer(http.StatusOK, h)
}
