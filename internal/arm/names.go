package arm

import (
	"fmt"
	"strings"

	"spillway.dev/spillway/internal/fault"
)

// Length bounds of names, in characters.
const (
	maxName        = 63
	minVolumeName  = 5 // Azure's; Kubernetes has 1
	minDNSLabel    = 5
	maxAzureEnv    = 63
	maxEnv         = 1024
	maxPath        = 4096
	maxRGName      = 90
	maxTags        = 50
	maxTagName     = 512
	maxTagValue    = 256
	maxLabels      = 64
	maxLabelLength = 317 // prefix 253, slash, name 63
)

func lowerAlnum(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

func alnum(c byte) bool { return lowerAlnum(c) || c >= 'A' && c <= 'Z' }

// labelRule checks a lower-case DNS label; "" when it is one. Azure forbids two dashes in a row, Kubernetes does not.
func labelRule(s string, low int, dashes bool) string {
	if len(s) < low || len(s) > maxName {
		return fmt.Sprintf("it must have %d to %d characters", low, maxName)
	}
	for i := range len(s) {
		if !lowerAlnum(s[i]) && s[i] != '-' {
			return "it may hold only lower-case letters, digits and dashes"
		}
	}
	if s[0] == '-' || s[len(s)-1] == '-' {
		return "a dash may not be its first or last character"
	}
	if !dashes && strings.Contains(s, "--") {
		return "dashes may not follow each other"
	}
	return ""
}

// name checks the name of a container or volume.
func (d *decoder) name(what, path, s string, low int) {
	if s == "" {
		return // reported as missing
	}
	if d.version.Superset {
		low = 1
	}
	if why := labelRule(s, low, d.version.Superset); why != "" {
		d.fault("", path, "The %s name '%s' is invalid: %s.", what, clip(s), why)
	}
}

// CheckGroupName applies the rule for the names of container groups.
func CheckGroupName(s string) error {
	if why := labelRule(s, 1, false); why != "" {
		return &fault.Error{Kind: fault.Invalid, Code: "InvalidContainerGroupName", Target: "name",
			Message: fmt.Sprintf("The container group name '%s' is invalid: %s.", clip(s), why)}
	}
	return nil
}

// CheckAddressName applies the rule for the names of service addresses.
func CheckAddressName(s string) error {
	if why := labelRule(s, 1, true); why != "" {
		return &fault.Error{Kind: fault.Invalid, Code: "InvalidServiceAddressName", Target: "name",
			Message: fmt.Sprintf("The service address name '%s' is invalid: %s.", clip(s), why)}
	}
	return nil
}

// maxNetworkName is Azure's, of virtual networks and subnets.
const maxNetworkName = 80

// CheckNetworkName applies Azure's rule for the names of virtual networks and subnets; what says which.
func CheckNetworkName(what, s string) error {
	ok := s != "" && len(s) <= maxNetworkName && alnum(s[0]) && (alnum(s[len(s)-1]) || s[len(s)-1] == '_')
	for i := range len(s) {
		ok = ok && (alnum(s[i]) || strings.IndexByte("-_.", s[i]) >= 0)
	}
	if ok {
		return nil
	}
	return &fault.Error{Kind: fault.Invalid, Code: "InvalidResourceName", Target: "name", Message: fmt.Sprintf(
		"The %s name '%s' is invalid: it must have 1 to %d characters out of letters, digits, '-', '_' and '.', begin with a letter or digit, and end with one or '_'.", what, clip(s), maxNetworkName)}
}

// CheckResourceGroupName applies ARM's rule for the names of resource groups.
func CheckResourceGroupName(s string) error {
	ok := s != "" && len(s) <= maxRGName && !strings.HasSuffix(s, ".")
	for i := range len(s) {
		ok = ok && (alnum(s[i]) || strings.IndexByte("-_().", s[i]) >= 0)
	}
	if ok {
		return nil
	}
	return &fault.Error{Kind: fault.Invalid, Code: "InvalidResourceGroup", Target: "name", Message: fmt.Sprintf(
		"The resource group name '%s' is invalid: it must have 1 to %d characters out of letters, digits, '-', '_', '.', '(' and ')', and may not end in '.'.", clip(s), maxRGName)}
}

// envRule says whether a name can be an environment variable: Azure's rule, or Kubernetes' looser one.
func envRule(s string, loose bool) bool {
	most := maxAzureEnv
	if loose {
		most = maxEnv
	}
	if s == "" || len(s) > most {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if loose && c >= ' ' && c < 0x7f && c != '=' {
			continue // as Kubernetes: whatever can be printed
		}
		digit := c >= '0' && c <= '9'
		ok := alnum(c) && (i > 0 || !digit) || c == '_'
		if !ok {
			return false
		}
	}
	return true
}

// fileName says whether a key of a secret or config map can be a file name.
func fileName(s string) bool {
	return s != "" && len(s) <= 253 && s != "." && s != ".." && !strings.HasPrefix(s, "..") && !strings.ContainsAny(s, "/\x00")
}

// filePath says whether a name can be that of a file below a volume, in directories of its own.
func filePath(s string) bool {
	if len(s) > maxPath {
		return false
	}
	for part := range strings.SplitSeq(s, "/") {
		if !fileName(part) {
			return false
		}
	}
	return true
}

// hostName says whether a name can be a host name: labels with dots between.
func hostName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for part := range strings.SplitSeq(strings.ToLower(s), ".") {
		if labelRule(part, 1, true) != "" {
			return false
		}
	}
	return true
}

// tags reads and checks tags.
func (o *object) tags() map[string]string {
	tags := o.stringMap("tags")
	if o == nil {
		return nil
	}
	if len(tags) > maxTags {
		o.d.fault("InvalidTagCount", o.at("tags"), "The field 'tags' has %d tags; at most %d are allowed.", len(tags), maxTags)
	}
	for _, k := range sortedKeys(tags) {
		if k == "" || len(k) > maxTagName || len(tags[k]) > maxTagValue {
			o.d.fault("InvalidTag", o.at("tags"), "The tag '%s' is invalid: a name has 1 to %d characters, a value at most %d.", clip(k), maxTagName, maxTagValue)
		}
	}
	return tags
}
