package client

import "encoding/json"

// What the API answers is kept beside its fields, so that it marshals to exactly the JSON that came: a field of a newer server is
// not lost on its way through an older client.

// keep reads JSON into fields, and into raw as it is.
func keep(data []byte, raw *json.RawMessage, fields any) error {
	*raw = append((*raw)[:0], data...)
	return json.Unmarshal(data, fields)
}

// kept gives the JSON that came, or the fields when none did.
func kept(raw json.RawMessage, fields any) ([]byte, error) {
	if raw != nil {
		return raw, nil
	}
	return json.Marshal(fields)
}
