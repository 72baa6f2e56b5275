package arm

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"path"
	"strconv"
	"strings"

	"spillway.dev/spillway/internal/group"
)

// badPath says whether a path could mean something else than it seems.
func badPath(p string) bool {
	return len(p) > maxPath || strings.ContainsRune(p, 0) || strings.Contains("/"+p+"/", "/../")
}

func (d *decoder) mount(o *object) group.Mount {
	m := group.Mount{Volume: o.required("name"), Path: o.required("mountPath"), ReadOnly: o.boolean("readOnly"), SubPath: o.str(o.since(vOwn, "subPath"))}
	if m.Path != "" {
		reserved := reservedMount(path.Clean(m.Path), d.version.Superset) // what is reserved for others than host paths: see mounts
		switch {
		case strings.Contains(m.Path, ":"):
			d.fault("", o.at("mountPath"), "The mount path '%s' must not contain ':'.", clip(m.Path))
		case !strings.HasPrefix(m.Path, "/") || badPath(m.Path):
			d.fault("", o.at("mountPath"), "The mount path '%s' must be absolute, without '..', at most %d characters.", clip(m.Path), maxPath)
		case reserved:
			d.fault("", o.at("mountPath"), "The mount path '%s' belongs to the platform. Choose another.", clip(m.Path))
		}
	}
	if strings.HasPrefix(m.SubPath, "/") || badPath(m.SubPath) {
		d.fault("", o.at("subPath"), "The sub-path '%s' must be relative, without '..', at most %d characters.", clip(m.SubPath), maxPath)
	}
	o.done()
	return m
}

func (d *decoder) volume(o *object) group.Volume {
	v := group.Volume{Name: o.required("name")}
	d.name("volume", o.at("name"), v.Name, minVolumeName)
	var sources []string
	if e := o.child("emptyDir"); e != nil {
		sources = append(sources, "emptyDir")
		v.EmptyDir = &group.EmptyDir{Memory: e.pick(vOwn, "medium", "Memory", "Disk") == "Memory", SizeLimit: e.bytes(e.since(vOwn, "sizeLimitInGB"), maxStorageGB)}
		e.done()
	}
	if o.child("secret") != nil {
		sources = append(sources, "secret")
		v.Secret = &group.Files{Data: d.base64Files(o, "secret")}
	}
	if c := o.child(o.since(vOwn, "configMap")); c != nil {
		sources = append(sources, "configMap")
		v.ConfigMap = &group.Files{Data: map[string][]byte{}}
		for k, s := range c.stringMap("keyValuePairs") {
			v.ConfigMap.Data[k] = []byte(s)
		}
		for k, b := range d.base64Files(c, "binaryKeyValuePairs") {
			v.ConfigMap.Data[k] = b
		}
		c.done()
	}
	if g := o.child("gitRepo"); g != nil {
		sources = append(sources, "gitRepo")
		v.GitRepo = d.gitRepo(g)
	}
	if a := o.child("azureFile"); a != nil {
		sources = append(sources, "azureFile")
		v.AzureFile = d.azureFile(a)
	}
	if h := o.child(o.since(vOwn, "hostPath")); h != nil {
		sources = append(sources, "hostPath")
		v.HostPath = d.hostPath(h)
	}
	o.refuse(o.since(v2025, "secretReference"), "", "this platform has no key vault; give the secret itself")
	d.modes(o, &v)
	if len(sources) != 1 {
		got := "none"
		if len(sources) > 1 {
			got = strings.Join(sources, " and ")
		}
		d.fault("", o.path, "The volume '%s' must have exactly one of azureFile, emptyDir, secret, configMap, gitRepo, hostPath, got %s.", clip(v.Name), got)
	}
	o.done()
	return v
}

func (d *decoder) base64Files(o *object, name string) map[string][]byte {
	files := map[string][]byte{}
	for k, s := range o.stringMap(name) {
		raw, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			d.fault("", o.at(name), "The value of '%s.%s' must be base64.", o.at(name), clip(k))
		}
		files[k] = raw
	}
	return files
}

// modes reads mode and modes, and checks names and sizes of a volume's files.
func (d *decoder) modes(o *object, v *group.Volume) {
	mode, hasMode := o.mode(o.since(vOwn, "mode"))
	single := o.child(o.since(vOwn, "modes"))
	owners := o.child(o.since(vOwn, "owners"))
	files := v.Secret
	if files == nil {
		files = v.ConfigMap
	}
	if files == nil {
		if hasMode || single != nil || owners != nil {
			d.fault("", o.path, "The volume '%s' has 'mode', 'modes' or 'owners', which only secret and configMap volumes have.", clip(v.Name))
		}
		return
	}
	files.Mode = mode
	size := 0
	for _, k := range sortedKeys(files.Data) {
		size += len(files.Data[k])
		if !fileName(k) && !(d.version.Superset && filePath(k)) {
			d.fault("", o.path, "The key '%s' of volume '%s' cannot be a file name.", clip(k), clip(v.Name))
		}
	}
	if size > group.MaxSecretBytes {
		d.fault("", o.path, "The files of volume '%s' have %d bytes together; at most %d are allowed.", clip(v.Name), size, group.MaxSecretBytes)
	}
	// An answer shows no files of a secret: put back, it keeps those that there are.
	unknown := func(k string) bool {
		_, ok := files.Data[k]
		return !ok && (v.Secret == nil || len(files.Data) > 0)
	}
	if owners != nil {
		files.Owners = map[string]int64{}
		for _, k := range sortedKeys(owners.m) {
			if unknown(k) {
				d.fault("", owners.path, "The field '%s' names the file '%s', which the volume does not have.", owners.path, clip(k))
			}
			if id := owners.id(k); id != nil {
				files.Owners[k] = *id
			}
		}
	}
	if single == nil {
		return
	}
	files.Modes = map[string]uint32{}
	for _, k := range sortedKeys(single.m) {
		if unknown(k) {
			d.fault("", single.path, "The field '%s' names the file '%s', which the volume does not have.", single.path, clip(k))
			continue
		}
		files.Modes[k], _ = single.mode(k)
	}
}

// mode reads permission bits: a number, or octal digits in a string.
func (o *object) mode(name string) (uint32, bool) {
	v := o.take(name)
	var n int64
	var err error
	switch t := v.(type) {
	case nil:
		return 0, false
	case json.Number:
		n, err = strconv.ParseInt(t.String(), 10, 32)
	case string:
		n, err = strconv.ParseInt(t, 8, 32)
	default:
		o.wrong(name, "permission bits", v)
		return 0, true
	}
	if err != nil || n < 0 || n > 0o777 {
		o.d.fault("", o.at(name), "The field '%s' must be permission bits: a number up to 511, or a string of octal digits up to \"0777\".", o.at(name))
		return 0, true
	}
	return uint32(n), true
}

func (d *decoder) gitRepo(o *object) *group.GitRepo {
	g := &group.GitRepo{Repository: o.required("repository"), Directory: o.str("directory"), Revision: o.str("revision")}
	u, err := url.Parse(g.Repository)
	if g.Repository != "" && (err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http") {
		d.fault("", o.at("repository"), "The repository '%s' must be an http or https URL.", clip(g.Repository))
	}
	if strings.HasPrefix(g.Directory, "/") || strings.HasPrefix(g.Directory, "-") || badPath(g.Directory) {
		d.fault("", o.at("directory"), "The directory '%s' must be relative, without '..'.", clip(g.Directory))
	}
	if strings.HasPrefix(g.Revision, "-") || strings.ContainsAny(g.Revision, " \t\r\n\x00:") || len(g.Revision) > 255 {
		d.fault("", o.at("revision"), "The revision '%s' must be a commit, branch or tag.", clip(g.Revision))
	}
	o.done()
	return g
}

func (d *decoder) azureFile(o *object) *group.AzureFile {
	a := &group.AzureFile{Share: o.required("shareName"), Account: o.required("storageAccountName"), AccountKey: o.str("storageAccountKey"), ReadOnly: o.boolean("readOnly")}
	o.refuse(o.since(v2025, "storageAccountKeyReference"), "", "this platform has no key vault; give the key itself")
	if a.Share != "" && (!fileName(a.Share) || strings.ContainsAny(a.Share, " \t\r\n\\,")) {
		d.fault("", o.at("shareName"), "The share name '%s' is invalid.", clip(a.Share))
	}
	if a.Account != "" && (!fileName(a.Account) || strings.ContainsAny(a.Account, " \t\r\n\\,@:")) {
		d.fault("", o.at("storageAccountName"), "The storage account name '%s' is invalid.", clip(a.Account))
	}
	o.done()
	return a
}
