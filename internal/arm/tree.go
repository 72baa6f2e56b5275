package arm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"spillway.dev/spillway/internal/fault"
)

// maxFaults bounds the details of one answer.
const maxFaults = 50

// decoder collects every fault of one body.
type decoder struct {
	version Version
	group   string // name of the group, for messages
	faults  []fault.Error
}

// fault notes that a field broke a rule.
func (d *decoder) fault(code, path, format string, args ...any) {
	if len(d.faults) >= maxFaults {
		return
	}
	if code == "" {
		code = "InvalidRequestContent"
	}
	d.faults = append(d.faults, fault.Error{Kind: fault.Invalid, Code: code, Target: path, Message: fmt.Sprintf(format, args...)})
}

// err is the one error of all faults, nil when there is none.
func (d *decoder) err() error {
	switch len(d.faults) {
	case 0:
		return nil
	case 1:
		return &d.faults[0]
	}
	first := d.faults[0]
	code := first.Code
	for _, f := range d.faults {
		if f.Code != code {
			code = "InvalidRequestContent"
		}
	}
	return &fault.Error{
		Kind: fault.Invalid, Code: code, Target: first.Target, Details: d.faults,
		Message: fmt.Sprintf("The request content has %d faults, the first: %s", len(d.faults), first.Message),
	}
}

// object is a JSON object whose fields are taken one by one; what nobody took is unknown. A nil object is absent:
// all its fields are.
type object struct {
	d     *decoder
	path  string
	m     map[string]any
	asked map[string]bool
}

// parse reads a body that must be one JSON object.
func (d *decoder) parse(body []byte) *object {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		d.fault("", "", "The request content is not valid JSON: %s.", jsonReason(err))
		return nil
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		d.fault("", "", "The request content has something after its JSON object.")
		return nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		d.fault("", "", "The request content must be a JSON object, got %s.", kindOf(v))
		return nil
	}
	return &object{d: d, m: m, asked: map[string]bool{}}
}

func jsonReason(err error) string {
	if errors.Is(err, io.EOF) {
		return "it is empty"
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return "it ends too early"
	}
	if s, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Sprintf("%s at byte %d", s.Error(), s.Offset)
	}
	return err.Error()
}

func kindOf(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "a boolean"
	case json.Number:
		return "a number"
	case string:
		return "a string"
	case []any:
		return "an array"
	}
	return "an object"
}

func (o *object) at(name string) string {
	if o.path == "" {
		return name
	}
	return o.path + "." + name
}

// take gives a field's value, nil when absent or null.
func (o *object) take(name string) any {
	if o == nil || name == "" {
		return nil
	}
	o.asked[name] = true
	return o.m[name]
}

// since guards a field that older api-versions lack: the name when this version has it, else "" and a fault.
func (o *object) since(v Version, name string) string {
	if o == nil {
		return ""
	}
	if o.d.version.has(v) {
		return name
	}
	if _, present := o.m[name]; present {
		o.asked[name] = true
		o.d.fault("", o.at(name), "The field '%s' does not exist in api-version %s. It exists in api-version %s.", o.at(name), o.d.version.Name, v.Name)
	}
	return ""
}

// ignore accepts fields that clients echo back and that only the platform writes.
func (o *object) ignore(names ...string) {
	for _, n := range names {
		o.take(n)
	}
}

// refuse reports a field of Azure's model that this platform cannot honour.
func (o *object) refuse(name, code, why string) {
	v := o.take(name)
	switch t := v.(type) {
	case nil:
		return
	case []any:
		if len(t) == 0 {
			return
		}
	case string:
		if t == "" {
			return
		}
	}
	o.d.fault(code, o.at(name), "The field '%s' cannot be honoured: %s. Remove it.", o.at(name), why)
}

// done reports the fields that nobody took.
func (o *object) done() {
	if o == nil {
		return
	}
	for _, name := range sortedKeys(o.m) {
		if o.asked[name] {
			continue
		}
		hint := ""
		for _, known := range sortedKeys(o.asked) {
			if near(name, known) {
				hint = fmt.Sprintf(" Did you mean '%s'?", known)
				break
			}
		}
		path := o.at(clip(name))
		o.d.fault("", path, "The field '%s' is unknown in api-version %s.%s", path, o.d.version.Name, hint)
	}
}

// near says whether two names differ by case or by one letter.
func near(a, b string) bool {
	a, b = strings.ToLower(a), strings.ToLower(b)
	if a == b {
		return true
	}
	if len(a) > len(b) {
		a, b = b, a
	}
	if len(b)-len(a) > 1 {
		return false
	}
	i := 0
	for i < len(a) && a[i] == b[i] {
		i++
	}
	if len(a) == len(b) {
		return a[i+1:] == b[i+1:]
	}
	return a[i:] == b[i+1:]
}

func (o *object) wrong(name, want string, v any) {
	o.d.fault("", o.at(name), "The field '%s' must be %s, got %s.", o.at(name), want, kindOf(v))
}

func (o *object) str(name string) string {
	switch v := o.take(name).(type) {
	case nil:
		return ""
	case string:
		return v
	default:
		o.wrong(name, "a string", v)
		return ""
	}
}

// required is str for a field that must be there and not empty.
func (o *object) required(name string) string {
	if o == nil {
		return ""
	}
	before := len(o.d.faults)
	s := o.str(name)
	if s == "" && len(o.d.faults) == before {
		o.d.fault("", o.at(name), "The field '%s' is required.", o.at(name))
	}
	return s
}

func (o *object) boolean(name string) bool {
	switch v := o.take(name).(type) {
	case nil:
		return false
	case bool:
		return v
	default:
		o.wrong(name, "true or false", v)
		return false
	}
}

// number reads a finite number; present tells it from an absent one.
func (o *object) number(name string) (f float64, present bool) {
	v := o.take(name)
	if v == nil {
		return 0, false
	}
	n, ok := v.(json.Number)
	if !ok {
		o.wrong(name, "a number", v)
		return 0, true
	}
	f, err := strconv.ParseFloat(n.String(), 64)
	if err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
		o.d.fault("", o.at(name), "The field '%s' must be a number of ordinary size, got '%s'.", o.at(name), clip(n.String()))
		return 0, true
	}
	return f, true
}

// integer reads a whole number within bounds.
func (o *object) integer(name string, low, high int64) (n int64, present bool) {
	before := 0
	if o != nil {
		before = len(o.d.faults)
	}
	f, present := o.number(name)
	if !present || len(o.d.faults) != before {
		return low, present
	}
	if f != math.Trunc(f) || f < float64(low) || f > float64(high) {
		o.d.fault("", o.at(name), "The field '%s' must be a whole number from %d to %d, got %s.", o.at(name), low, high, strconv.FormatFloat(f, 'g', 12, 64))
		return low, true
	}
	return int64(f), true
}

func (o *object) child(name string) *object {
	switch v := o.take(name).(type) {
	case nil:
		return nil
	case map[string]any:
		return &object{d: o.d, path: o.at(name), m: v, asked: map[string]bool{}}
	default:
		o.wrong(name, "an object", v)
		return nil
	}
}

// list reads an array of objects.
func (o *object) list(name string) []*object {
	switch v := o.take(name).(type) {
	case nil:
		return nil
	case []any:
		out := make([]*object, 0, len(v))
		for i, e := range v {
			path := fmt.Sprintf("%s[%d]", o.at(name), i)
			m, ok := e.(map[string]any)
			if !ok {
				o.d.fault("", path, "The field '%s' must be an object, got %s.", path, kindOf(e))
				continue
			}
			out = append(out, &object{d: o.d, path: path, m: m, asked: map[string]bool{}})
		}
		return out
	default:
		o.wrong(name, "an array", v)
		return nil
	}
}

func (o *object) strings(name string) []string {
	switch v := o.take(name).(type) {
	case nil:
		return nil
	case []any:
		var out []string // nil when empty: absent and empty mean the same
		for i, e := range v {
			s, ok := e.(string)
			if !ok {
				o.d.fault("", o.at(name), "The field '%s[%d]' must be a string, got %s.", o.at(name), i, kindOf(e))
				continue
			}
			out = append(out, s)
		}
		return out
	default:
		o.wrong(name, "an array of strings", v)
		return nil
	}
}

func (o *object) stringMap(name string) map[string]string {
	switch v := o.take(name).(type) {
	case nil:
		return nil
	case map[string]any:
		if len(v) == 0 {
			return nil // absent and empty mean the same
		}
		out := make(map[string]string, len(v))
		for _, k := range sortedKeys(v) {
			s, ok := v[k].(string)
			if !ok {
				o.d.fault("", o.at(name), "The field '%s.%s' must be a string, got %s.", o.at(name), clip(k), kindOf(v[k]))
				continue
			}
			out[k] = s
		}
		return out
	default:
		o.wrong(name, "an object with string values", v)
		return nil
	}
}

// choice reads one of a few words, in any case, and gives its canonical spelling; def when absent.
func (o *object) choice(name, def string, words ...string) string {
	if o == nil {
		return def
	}
	s := o.str(name)
	if s == "" {
		return def
	}
	for _, w := range words {
		if strings.EqualFold(w, s) {
			return w
		}
	}
	o.d.fault("", o.at(name), "The field '%s' must be one of %s, got '%s'.", o.at(name), strings.Join(words, ", "), clip(s))
	return def
}
