package arm

import "time"

// The JSON of answers. Field order is Azure's own: properties, id, name, type, location, tags. Pointers and omitempty
// mirror what the real service leaves out; fields below "Spillway" appear only under its own api-version.

type wireGroup struct {
	Properties wireProperties    `json:"properties"`
	ID         string            `json:"id"`
	Name       string            `json:"name"`
	Type       string            `json:"type"`
	Location   string            `json:"location"`
	Tags       map[string]string `json:"tags"`
	Zones      []string          `json:"zones,omitempty"`
}

type wireProperties struct {
	SKU                 string           `json:"sku"`
	ProvisioningState   string           `json:"provisioningState"`
	ProvisioningTimeout int              `json:"provisioningTimeoutInSeconds"`
	CustomTimeout       bool             `json:"isCustomProvisioningTimeout"`
	Containers          []wireContainer  `json:"containers"`
	InitContainers      []wireContainer  `json:"initContainers"`
	Credentials         []wireCredential `json:"imageRegistryCredentials,omitempty"`
	RestartPolicy       string           `json:"restartPolicy"`
	IPAddress           *wireIP          `json:"ipAddress,omitempty"`
	OSType              string           `json:"osType"`
	Volumes             []wireVolume     `json:"volumes,omitempty"`
	DNSConfig           *wireDNS         `json:"dnsConfig,omitempty"`
	Priority            string           `json:"priority,omitempty"`
	SubnetIDs           []wireSubnetID   `json:"subnetIds,omitempty"`
	InstanceView        *wireGroupView   `json:"instanceView,omitempty"`
	*OwnGroup                            // Spillway
}

type wireSubnetID struct {
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
}

// OwnGroup are the properties of a group that only Spillway's api-version has.
type OwnGroup struct {
	UID              string            `json:"uid"`
	Generation       int64             `json:"generation"`
	Epoch            int64             `json:"epoch"`
	Host             string            `json:"host,omitempty"`
	Desired          string            `json:"desired"`
	Created          string            `json:"created"`
	Labels           map[string]string `json:"labels,omitempty"`
	Ephemeral        []wireContainer   `json:"ephemeralContainers,omitempty"`
	FSGroup          *int64            `json:"fsGroup,omitempty"`
	Placeholder      string            `json:"addressPlaceholder,omitempty"`
	Isolation        string            `json:"isolation,omitempty"`
	HostAliases      []wireHostAlias   `json:"hostAliases,omitempty"`
	Hostname         string            `json:"hostname,omitempty"`
	Sysctls          map[string]string `json:"sysctls,omitempty"`
	ShareProcesses   bool              `json:"shareProcessNamespace,omitempty"`
	GraceSeconds     *int              `json:"terminationGracePeriodSeconds,omitempty"`
	EphemeralStorage float64           `json:"ephemeralStorageInGB,omitempty"`
	Network          string            `json:"network,omitempty"`
	HostNetwork      bool              `json:"hostNetwork,omitempty"`
	HostAddress      string            `json:"hostAddress,omitempty"`
	HostPID          bool              `json:"hostPID,omitempty"`
	HostIPC          bool              `json:"hostIPC,omitempty"`
	HostsComment     string            `json:"hostsComment,omitempty"`
	Placement        *wirePlacement    `json:"placement,omitempty"`
	Failover         string            `json:"failover,omitempty"`
}

type wireHostAlias struct {
	IP        string   `json:"ip"`
	Hostnames []string `json:"hostnames"`
}

type wireGroupView struct {
	Events []wireEvent `json:"events"`
	State  string      `json:"state"`
	// Spillway:
	Address  string `json:"address,omitempty"` // in the virtual network
	Reason   string `json:"reason,omitempty"`
	Started  string `json:"startTime,omitempty"`
	Finished string `json:"finishTime,omitempty"`
	Epoch    int64  `json:"epoch,omitempty"` // that the view tells of
}

type wireEvent struct {
	Count   int    `json:"count"`
	First   string `json:"firstTimestamp"`
	Last    string `json:"lastTimestamp"`
	Name    string `json:"name"`
	Message string `json:"message"`
	Type    string `json:"type"`
}

type wireContainer struct {
	Name       string                  `json:"name"`
	Properties wireContainerProperties `json:"properties"`
}

type wireContainerProperties struct {
	Image         string             `json:"image"`
	Command       []string           `json:"command,omitempty"`
	Ports         *[]wirePort        `json:"ports,omitempty"`
	Env           []wireEnv          `json:"environmentVariables"`
	InstanceView  *wireContainerView `json:"instanceView,omitempty"`
	Resources     *wireResources     `json:"resources,omitempty"`
	Mounts        []wireMount        `json:"volumeMounts,omitempty"`
	Liveness      *wireProbe         `json:"livenessProbe,omitempty"`
	Readiness     *wireProbe         `json:"readinessProbe,omitempty"`
	Security      *wireSecurity      `json:"securityContext,omitempty"`
	ConfigMap     *wireConfigMap     `json:"configMap,omitempty"` // since 2025-09-01
	*OwnContainer                    // Spillway
}

// OwnContainer are the properties of a container that only Spillway's api-version has.
type OwnContainer struct {
	Args          []string       `json:"args,omitempty"`
	WorkingDir    string         `json:"workingDirectory,omitempty"`
	Startup       *wireProbe     `json:"startupProbe,omitempty"`
	Lifecycle     *wireLifecycle `json:"lifecycle,omitempty"`
	RestartPolicy string         `json:"restartPolicy,omitempty"` // of a sidecar
	TTY           bool           `json:"tty,omitempty"`
	Stdin         bool           `json:"stdin,omitempty"`
	StopSignal    string         `json:"stopSignal,omitempty"`
	PullPolicy    string         `json:"imagePullPolicy,omitempty"`
	Target        string         `json:"targetContainer,omitempty"` // of an ephemeral container
	MessagePath   string         `json:"terminationMessagePath,omitempty"`
	MessagePolicy string         `json:"terminationMessagePolicy,omitempty"`
}

type wireConfigMap struct {
	Pairs  map[string]string `json:"keyValuePairs"`
	Binary map[string][]byte `json:"binaryKeyValuePairs,omitempty"` // Spillway, volumes only
}

type wirePort struct {
	Protocol string `json:"protocol"`
	Port     int    `json:"port"`
}

type wireEnv struct {
	Name  string  `json:"name"`
	Value *string `json:"value,omitempty"` // absent for a secret
}

type wireResources struct {
	Requests wireAmounts `json:"requests"`
	Limits   *wireLimits `json:"limits,omitempty"`
}

type wireAmounts struct {
	MemoryInGB float64  `json:"memoryInGB,omitempty"`
	CPU        float64  `json:"cpu,omitempty"`
	GPU        *wireGPU `json:"gpu,omitempty"` // Spillway
}

// wireLimits tells an absent limit, which is the request, from 0, which is none.
type wireLimits struct {
	MemoryInGB *float64 `json:"memoryInGB,omitempty"`
	CPU        *float64 `json:"cpu,omitempty"`
}

type wireMount struct {
	Name     string `json:"name"`
	Path     string `json:"mountPath"`
	ReadOnly bool   `json:"readOnly"`
	SubPath  string `json:"subPath,omitempty"` // Spillway
}

type wireHandler struct {
	Exec  *wireExec    `json:"exec,omitempty"`
	HTTP  *wireHTTPGet `json:"httpGet,omitempty"`
	TCP   *wirePortRef `json:"tcpSocket,omitempty"` // Spillway, as the rest
	GRPC  *wirePortRef `json:"grpc,omitempty"`
	Sleep *wireSleep   `json:"sleep,omitempty"`
}

type wireProbe struct {
	wireHandler
	InitialDelay     int  `json:"initialDelaySeconds,omitempty"`
	Period           int  `json:"periodSeconds,omitempty"`
	FailureThreshold int  `json:"failureThreshold,omitempty"`
	SuccessThreshold int  `json:"successThreshold,omitempty"`
	Timeout          int  `json:"timeoutSeconds,omitempty"`
	Grace            *int `json:"terminationGracePeriodSeconds,omitempty"` // Spillway
}

type wireExec struct {
	Command []string `json:"command"`
}

type wireHTTPGet struct {
	Path    string       `json:"path,omitempty"`
	Port    int          `json:"port"`
	Scheme  string       `json:"scheme,omitempty"`
	Host    string       `json:"host,omitempty"` // Spillway
	Headers []wireHeader `json:"httpHeaders,omitempty"`
}

type wireHeader struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type wirePortRef struct {
	Port    int    `json:"port"`
	Service string `json:"service,omitempty"`
}

type wireSleep struct {
	Seconds int `json:"seconds"`
}

type wireLifecycle struct {
	PostStart *wireHandler `json:"postStart,omitempty"`
	PreStop   *wireHandler `json:"preStop,omitempty"`
}

type wireSecurity struct {
	AllowEscalation bool              `json:"allowPrivilegeEscalation"`
	Capabilities    *wireCapabilities `json:"capabilities,omitempty"`
	RunAsGroup      *int64            `json:"runAsGroup,omitempty"`
	RunAsUser       *int64            `json:"runAsUser,omitempty"`
	Seccomp         string            `json:"seccompProfile,omitempty"`
	ReadOnlyRoot    bool              `json:"readOnlyRootFilesystem,omitempty"` // Spillway, as the rest
	RunAsNonRoot    bool              `json:"runAsNonRoot,omitempty"`
	ExtraGroups     []int64           `json:"supplementalGroups,omitempty"`
	Privileged      bool              `json:"privileged,omitempty"`
}

type wireCapabilities struct {
	Add  []string `json:"add,omitempty"`
	Drop []string `json:"drop,omitempty"`
}

type wireCredential struct {
	Server   string `json:"server"`
	Username string `json:"username,omitempty"`
}

type wireIP struct {
	Ports    []wirePort `json:"ports"`
	IP       string     `json:"ip,omitempty"`
	Type     string     `json:"type"`
	DNSLabel string     `json:"dnsNameLabel,omitempty"`
	Scope    string     `json:"autoGeneratedDomainNameLabelScope,omitempty"`
	FQDN     string     `json:"fqdn,omitempty"`
}

type wireDNS struct {
	Servers []string `json:"nameServers"`
	Search  string   `json:"searchDomains,omitempty"`
	Options string   `json:"options,omitempty"`
}

type wireVolume struct {
	Name      string            `json:"name"`
	AzureFile *wireAzureFile    `json:"azureFile,omitempty"`
	EmptyDir  *wireEmptyDir     `json:"emptyDir,omitempty"`
	Secret    *struct{}         `json:"secret,omitempty"`
	GitRepo   *wireGitRepo      `json:"gitRepo,omitempty"`
	ConfigMap *wireConfigMap    `json:"configMap,omitempty"` // Spillway, as the rest
	Mode      uint32            `json:"mode,omitempty"`
	Modes     map[string]uint32 `json:"modes,omitempty"`
	Owners    map[string]int64  `json:"owners,omitempty"`
	HostPath  *wireHostPath     `json:"hostPath,omitempty"`
}

type wireHostPath struct {
	Path string `json:"path"`
	Type string `json:"type,omitempty"`
}

type wireAzureFile struct {
	Share    string `json:"shareName"`
	ReadOnly bool   `json:"readOnly"`
	Account  string `json:"storageAccountName"`
}

type wireEmptyDir struct {
	Medium    string  `json:"medium,omitempty"`        // Spillway
	SizeLimit float64 `json:"sizeLimitInGB,omitempty"` // Spillway
}

type wireGitRepo struct {
	Directory  string `json:"directory,omitempty"`
	Repository string `json:"repository"`
	Revision   string `json:"revision,omitempty"`
}

type wireContainerView struct {
	RestartCount int         `json:"restartCount"`
	Current      *wireMoment `json:"currentState,omitempty"`
	Previous     *wireMoment `json:"previousState,omitempty"`
	Events       []wireEvent `json:"events"`
	// Spillway:
	Ready        *bool  `json:"ready,omitempty"`
	Started      bool   `json:"started,omitempty"` // runs, and has passed its startup probe
	ImageDigest  string `json:"image,omitempty"`
	BackoffUntil string `json:"backoffUntil,omitempty"`
}

type wireMoment struct {
	State    string `json:"state"`
	Start    string `json:"startTime,omitempty"`
	ExitCode *int   `json:"exitCode,omitempty"`
	Finish   string `json:"finishTime,omitempty"`
	Detail   string `json:"detailStatus"`
	Signal   int    `json:"signal,omitempty"`  // Spillway
	Message  string `json:"message,omitempty"` // Spillway
}

// Stamp renders a time as the service does; "" for none.
func Stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.999Z07:00")
}
