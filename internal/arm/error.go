package arm

import (
	"encoding/json"

	"spillway.dev/spillway/internal/fault"
)

// CloudError is the body of every refusal.
type CloudError struct {
	Error CloudErrorBody `json:"error"`
}

// CloudErrorBody is one error, with the faults that make it up.
type CloudErrorBody struct {
	Code    string           `json:"code"`
	Message string           `json:"message"`
	Target  string           `json:"target,omitempty"`
	Details []CloudErrorBody `json:"details,omitempty"`
}

// RenderError turns an error for users into its body.
func RenderError(e *fault.Error) CloudError { return CloudError{Error: errorBody(e)} }

func errorBody(e *fault.Error) CloudErrorBody {
	body := CloudErrorBody{Code: e.ARMCode(), Message: e.Message, Target: e.Target}
	for i := range e.Details {
		body.Details = append(body.Details, errorBody(&e.Details[i]))
	}
	return body
}

// ParseError reads an error body; nil when it is none.
func ParseError(status int, body []byte) *fault.Error {
	var c CloudError
	if json.Unmarshal(body, &c) != nil || c.Error.Code == "" && c.Error.Message == "" {
		return nil
	}
	e := faultOf(status, c.Error)
	return &e
}

func faultOf(status int, c CloudErrorBody) fault.Error {
	e := fault.Error{Kind: fault.ForStatus(status), Status: status, Code: c.Code, Message: c.Message, Target: c.Target}
	for _, d := range c.Details {
		e.Details = append(e.Details, faultOf(status, d))
	}
	return e
}
