package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
)

// answer sends a JSON body.
func (c *call) answer(status int, body any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	h := c.w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(data)))
	c.w.WriteHeader(status)
	_, _ = c.w.Write(data) // a caller that is gone misses nothing
	return nil
}

// empty sends a status without a body.
func (c *call) empty(status int) error {
	c.w.WriteHeader(status)
	return nil
}

// ErrorCodeHeader repeats an error's code, as Azure does: who passes answers on need not read them.
const ErrorCodeHeader = "X-Ms-Error-Code"

// fail renders an error. What is no fault for users is logged with the request's id, which the caller sees.
func (a *api) fail(c *call, err error) {
	if c.r.Context().Err() != nil && errors.Is(err, context.Canceled) {
		return // nobody is listening
	}
	e, ok := errors.AsType[*fault.Error](err)
	switch {
	case ok:
	case errors.Is(err, context.DeadlineExceeded):
		a.Log.Error("request took too long", "request", c.id, "error", err)
		e = fault.New(fault.Unavailable, "", "The platform did not answer in time. Try again.")
	default:
		a.Log.Error("request failed", "request", c.id, "method", c.r.Method, "path", c.r.URL.Path, "error", err)
		e = fault.New(fault.Internal, "", "The platform failed. Its log has the cause under request id %s.", c.id)
	}
	if e.HTTPStatus() == http.StatusTooManyRequests || e.HTTPStatus() == http.StatusServiceUnavailable {
		c.w.Header().Set("Retry-After", "1")
	}
	c.w.Header().Set("X-Ms-Failure-Cause", "gateway")
	c.w.Header().Set(ErrorCodeHeader, e.Code)
	_ = c.answer(e.HTTPStatus(), arm.RenderError(e)) // strings always marshal
}

// body reads a JSON body within the limit.
func (c *call) body() ([]byte, error) {
	if kind := c.r.Header.Get("Content-Type"); kind != "" {
		media, _, err := mime.ParseMediaType(kind)
		if err != nil || media != "application/json" && media != "text/json" && !strings.HasSuffix(media, "+json") {
			return nil, fault.New(fault.MediaType, "", "The content media type '%.80s' is not supported. Only 'application/json' is supported.", kind)
		}
	} else if c.r.ContentLength != 0 && c.r.Method != http.MethodPost {
		return nil, fault.New(fault.MediaType, "", "The content media type '<null>' is not supported. Only 'application/json' is supported.")
	}
	if c.r.ContentLength > group.MaxBody {
		return nil, tooLarge()
	}
	control := http.NewResponseController(c.w)
	_ = control.SetReadDeadline(time.Now().Add(bodyTimeout)) // not every writer has deadlines
	defer func() { _ = control.SetReadDeadline(time.Time{}) }()
	data, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, group.MaxBody))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, tooLarge()
		}
		return nil, fault.New(fault.Invalid, "", "The request content could not be read to its end.")
	}
	return data, nil
}

func tooLarge() error {
	return fault.New(fault.TooLarge, "", "The request content exceeds the limit of %d bytes.", group.MaxBody)
}

// decode reads a small JSON body strictly; an absent body leaves to as it is.
func (c *call) decode(to any) error {
	data, err := c.body()
	if err != nil || len(data) == 0 {
		return err
	}
	dec := json.NewDecoder(strings.NewReader(string(data)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(to); err != nil {
		return fault.New(fault.Invalid, "", "The request content is invalid: %.200s.", strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}

// page is a list answer.
type page struct {
	Value    any    `json:"value"`
	NextLink string `json:"nextLink,omitempty"`
}
