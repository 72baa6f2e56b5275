package virtualnode

// groupResource is a container group as the platform's API takes it, api-version 2026-11-01-spillway.
type groupResource struct {
	Location   string            `json:"location,omitempty"`
	Tags       map[string]string `json:"tags"`
	Properties properties        `json:"properties"`
}

type properties struct {
	Containers     []container       `json:"containers"`
	InitContainers []container       `json:"initContainers,omitempty"`
	Ephemeral      []container       `json:"ephemeralContainers,omitempty"`
	Volumes        []volume          `json:"volumes,omitempty"`
	Credentials    []credential      `json:"imageRegistryCredentials,omitempty"`
	RestartPolicy  string            `json:"restartPolicy"`
	OSType         string            `json:"osType"`
	Network        string            `json:"network,omitempty"`
	Labels         map[string]string `json:"labels,omitempty"`
	Isolation      string            `json:"isolation,omitempty"`
	Hostname       string            `json:"hostname,omitempty"`
	HostAliases    []hostAlias       `json:"hostAliases,omitempty"`
	DNS            *dnsConfig        `json:"dnsConfig,omitempty"`
	Sysctls        map[string]string `json:"sysctls,omitempty"`
	SharePIDs      bool              `json:"shareProcessNamespace,omitempty"`
	Grace          *int64            `json:"terminationGracePeriodSeconds,omitempty"`
	FSGroup        *int64            `json:"fsGroup,omitempty"`
	// Address stands for the group's address in environment variables, commands and arguments: it is known on the
	// host only.
	Address      string     `json:"addressPlaceholder,omitempty"`
	HostNetwork  bool       `json:"hostNetwork,omitempty"`
	HostAddress  string     `json:"hostAddress,omitempty"`
	HostPID      bool       `json:"hostPID,omitempty"`
	HostIPC      bool       `json:"hostIPC,omitempty"`
	HostsComment string     `json:"hostsComment,omitempty"`
	Placement    *placement `json:"placement,omitempty"`
}

// placement is where a group may run, as rules about other groups.
type placement struct {
	Affinity     []affinity `json:"affinity,omitempty"`
	AntiAffinity []affinity `json:"antiAffinity,omitempty"`
	Spread       []spread   `json:"spread,omitempty"`
}

type affinity struct {
	Labels   []expression `json:"labels"`
	Topology string       `json:"topology"`
	Weight   int32        `json:"weight,omitempty"` // none: required
}

type spread struct {
	Labels        []expression `json:"labels"`
	Topology      string       `json:"topology"`
	MaxSkew       int32        `json:"maxSkew"`
	Unsatisfiable string       `json:"whenUnsatisfiable"`
}

type expression struct {
	Key      string   `json:"key"`
	Operator string   `json:"operator"`
	Values   []string `json:"values,omitempty"`
}

type hostAlias struct {
	IP        string   `json:"ip"`
	Hostnames []string `json:"hostnames"`
}

type dnsConfig struct {
	Servers []string `json:"nameServers"`
	Search  string   `json:"searchDomains,omitempty"`
	Options string   `json:"options,omitempty"`
}

type credential struct {
	Server   string `json:"server"`
	Username string `json:"username"`
	Password string `json:"password"`
}

type container struct {
	Name       string              `json:"name"`
	Properties containerProperties `json:"properties"`
}

type containerProperties struct {
	Image         string     `json:"image"`
	PullPolicy    string     `json:"imagePullPolicy,omitempty"`
	Command       []string   `json:"command,omitempty"`
	Args          []string   `json:"args,omitempty"`
	WorkingDir    string     `json:"workingDirectory,omitempty"`
	Env           []envVar   `json:"environmentVariables,omitempty"`
	Resources     *resources `json:"resources,omitempty"`
	Mounts        []mount    `json:"volumeMounts,omitempty"`
	Liveness      *probe     `json:"livenessProbe,omitempty"`
	Readiness     *probe     `json:"readinessProbe,omitempty"`
	Startup       *probe     `json:"startupProbe,omitempty"`
	Lifecycle     *lifecycle `json:"lifecycle,omitempty"`
	Security      *security  `json:"securityContext,omitempty"`
	RestartPolicy string     `json:"restartPolicy,omitempty"`
	TTY           bool       `json:"tty,omitempty"`
	Stdin         bool       `json:"stdin,omitempty"`
	StopSignal    string     `json:"stopSignal,omitempty"`
	MessagePath   string     `json:"terminationMessagePath,omitempty"`
	MessagePolicy string     `json:"terminationMessagePolicy,omitempty"`
	Target        string     `json:"targetContainer,omitempty"` // of an ephemeral container
}

// envVar has exactly one of the values; a secure one is never given back.
type envVar struct {
	Name   string  `json:"name"`
	Value  *string `json:"value,omitempty"`
	Secure *string `json:"secureValue,omitempty"`
}

type resources struct {
	Requests amounts  `json:"requests"`
	Limits   *amounts `json:"limits,omitempty"`
}

type amounts struct {
	CPU    float64 `json:"cpu"`        // cores
	Memory float64 `json:"memoryInGB"` // of 2^30 bytes
}

type mount struct {
	Name     string `json:"name"`
	Path     string `json:"mountPath"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	SubPath  string `json:"subPath,omitempty"`
}

type volume struct {
	Name     string           `json:"name"`
	EmptyDir *emptyDir        `json:"emptyDir,omitempty"`
	Secret   *fileBodies      `json:"secret,omitempty"`
	Config   *configFiles     `json:"configMap,omitempty"`
	Mode     *int32           `json:"mode,omitempty"`
	Modes    map[string]int32 `json:"modes,omitempty"`
	Owners   map[string]int64 `json:"owners,omitempty"`
	HostPath *hostPath        `json:"hostPath,omitempty"`
}

type hostPath struct {
	Path string `json:"path"`
	Type string `json:"type,omitempty"`
}

// hasFiles says whether the volume is made of files that can change while the group runs.
func (v *volume) hasFiles() bool { return v.Secret != nil || v.Config != nil }

// fileBodies are files by their paths, in base64. There may be none.
type fileBodies map[string]string

type emptyDir struct {
	Medium string  `json:"medium,omitempty"`
	Limit  float64 `json:"sizeLimitInGB,omitempty"`
}

// configFiles are files that are no secret; all go the binary way.
type configFiles struct {
	Binary fileBodies `json:"binaryKeyValuePairs"`
}

type handler struct {
	Exec  *execAction `json:"exec,omitempty"`
	HTTP  *httpGet    `json:"httpGet,omitempty"`
	TCP   *portRef    `json:"tcpSocket,omitempty"`
	GRPC  *portRef    `json:"grpc,omitempty"`
	Sleep *sleep      `json:"sleep,omitempty"`
}

type execAction struct {
	Command []string `json:"command"`
}

type httpGet struct {
	Path    string   `json:"path,omitempty"`
	Port    int32    `json:"port"`
	Scheme  string   `json:"scheme,omitempty"`
	Host    string   `json:"host,omitempty"`
	Headers []header `json:"httpHeaders,omitempty"`
}

type header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type portRef struct {
	Port    int32  `json:"port"`
	Service string `json:"service,omitempty"`
}

type sleep struct {
	Seconds int64 `json:"seconds"`
}

type probe struct {
	handler
	InitialDelay     int32  `json:"initialDelaySeconds,omitempty"`
	Period           int32  `json:"periodSeconds,omitempty"`
	Timeout          int32  `json:"timeoutSeconds,omitempty"`
	SuccessThreshold int32  `json:"successThreshold,omitempty"`
	FailureThreshold int32  `json:"failureThreshold,omitempty"`
	Grace            *int64 `json:"terminationGracePeriodSeconds,omitempty"`
}

type lifecycle struct {
	PostStart *handler `json:"postStart,omitempty"`
	PreStop   *handler `json:"preStop,omitempty"`
}

type security struct {
	User            *int64        `json:"runAsUser,omitempty"`
	Group           *int64        `json:"runAsGroup,omitempty"`
	NonRoot         bool          `json:"runAsNonRoot,omitempty"`
	ReadOnlyRoot    bool          `json:"readOnlyRootFilesystem,omitempty"`
	AllowEscalation bool          `json:"allowPrivilegeEscalation"`
	Privileged      bool          `json:"privileged,omitempty"`
	Capabilities    *capabilities `json:"capabilities,omitempty"`
	Groups          []int64       `json:"supplementalGroups,omitempty"`
}

type capabilities struct {
	Add  []string `json:"add,omitempty"`
	Drop []string `json:"drop,omitempty"`
}
