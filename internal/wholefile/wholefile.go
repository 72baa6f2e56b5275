// Package wholefile writes small files that are there whole or not at all, whatever dies meanwhile.
//
// Start reading at Write.
package wholefile

import (
	"errors"
	"os"
)

// Write replaces a file's content. It outlives the process; a crash of the machine may bring the old content back, or
// leave the file empty.
func Write(path string, body []byte) error {
	if err := os.WriteFile(path+".new", body, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// WriteSynced is Write for what must also be whole after a crash of the machine.
func WriteSynced(path string, body []byte) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(body)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
