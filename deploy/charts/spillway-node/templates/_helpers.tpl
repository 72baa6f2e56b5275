{{- define "spillway-node.labels" -}}
{app.kubernetes.io/name: spillway-node, app.kubernetes.io/instance: {{ .Release.Name }}}
{{- end -}}
{{- define "spillway-node.subject" -}}
- {kind: ServiceAccount, name: {{ .Release.Name }}, namespace: {{ .Release.Namespace }}}
{{- end -}}
