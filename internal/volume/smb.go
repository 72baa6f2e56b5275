package volume

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
)

// azureFiles is the domain under which Azure serves file shares.
const azureFiles = ".file.core.windows.net"

// mountSMB mounts an Azure file share with the kernel's SMB client. The key goes into the mount call only: never into a
// file, a log or a message.
func mountSMB(path string, f *group.AzureFile) (Source, error) {
	if strings.ContainsAny(f.Account+f.Share, "/\\,\x00 ") || f.Account == "" || f.Share == "" {
		return Source{}, fault.New(fault.Invalid, "InvalidVolume", "azureFile share %q of account %q: names hold letters, digits and hyphens", f.Share, f.Account)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	host := f.Account + azureFiles
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", host)
	if err != nil || len(addrs) == 0 {
		return Source{}, fault.New(fault.Unavailable, "", "azureFile share %s: server %s has no address: %v", f.Share, host, err)
	}
	if err := os.Mkdir(path, 0o700); err != nil && !os.IsExist(err) {
		return Source{}, err
	}
	if mounted, err := isMount(path); err != nil || mounted {
		return Source{Path: path, ReadOnly: f.ReadOnly}, err
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	if f.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	// A comma ends an option; doubled it is part of the value.
	opts := fmt.Sprintf("ip=%s,vers=3.1.1,username=%s,password=%s,dir_mode=0777,file_mode=0777,serverino", addrs[0], f.Account, strings.ReplaceAll(f.AccountKey, ",", ",,"))
	if err := unix.Mount("//"+host+"/"+f.Share, path, "cifs", flags, opts); err != nil {
		return Source{}, fault.New(fault.Unavailable, "", "azureFile share %s of %s cannot be mounted: %v; check the share's name and the account key", f.Share, host, err)
	}
	return Source{Path: path, ReadOnly: f.ReadOnly}, nil
}
