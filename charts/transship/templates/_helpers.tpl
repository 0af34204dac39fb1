{{/* Labels of every object. */}}
{{- define "transship.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: transship
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Labels that select one component's pods. Called with a list of context and component. */}}
{{- define "transship.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Labels of a component's objects. Called with a list of context and component. */}}
{{- define "transship.componentLabels" -}}
{{ include "transship.labels" (index . 0) }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Reference of an image. Called with a list of context and its entry below .Values.image. */}}
{{- define "transship.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $root.Values.image.registry }}{{ $root.Values.image.registry }}/{{ end }}{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default $root.Chart.AppVersion $image.tag }}{{ end }}
{{- end }}

{{/* Reference of kube-scheduler's image. The cluster's version may end in what its vendor has added. */}}
{{- define "transship.schedulerImage" -}}
{{- $version := regexFind "^v[0-9]+[.][0-9]+[.][0-9]+(-(alpha|beta|rc)[.][0-9]+)?" .Capabilities.KubeVersion.Version }}
{{- with .Values.scheduler.image }}{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ default $version .tag }}{{ end }}{{ end }}
{{- end }}

{{/* Where the operator answers the kube-scheduler beside it, on localhost. */}}
{{- define "transship.extenderPort" -}}9444{{- end }}

{{/* Seconds without a report after which a node is not Ready. Values reused from an earlier chart have none. */}}
{{- define "transship.nodeTtl" -}}
{{- $ttl := int (default 40 .Values.discovery.ttlSeconds) }}
{{- if le $ttl (mul 3 .Values.agent.heartbeatSeconds | int) }}
{{- fail (printf "discovery.ttlSeconds is %d: write more than three times agent.heartbeatSeconds (%v)" $ttl .Values.agent.heartbeatSeconds) }}
{{- end }}
{{- $ttl }}
{{- end }}

{{/* Annotations of pods that are validated, as a list of CEL's strings without brackets. */}}
{{- define "transship.placementAnnotations" -}}
'transship.dev/constraints', 'transship.dev/affinities', 'transship.dev/whitelist', 'transship.dev/strategy', 'transship.dev/depends-on', 'transship.dev/reschedule'
{{- end }}

{{/* Users as the API server names them. */}}
{{- define "transship.operatorUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:transship-operator
{{- end }}
{{- define "transship.agentUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:transship-agent
{{- end }}

{{/* The operator's container, without name, args, ports and probes: Deployment and Job share it. */}}
{{- define "transship.operatorContainer" -}}
image: {{ include "transship.image" (list . .Values.image.operator) }}
imagePullPolicy: {{ .Values.image.operator.pullPolicy }}
env:
  - name: POD_NAME
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
  - name: POD_NAMESPACE
    valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
  - name: NODE_NAME
    valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
  - name: LOG_LEVEL
    value: {{ .Values.operator.logLevel | quote }}
  - name: LOG_FORMAT
    value: json
  - name: WEBHOOK_PORT
    value: "9443"
  - name: ADMIN_PORT
    value: "8080"
  {{- with .Values.operator.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
resources:
  {{- toYaml .Values.operator.resources | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
{{- end }}

{{/* What the operator's pods share besides container and volumes. */}}
{{- define "transship.operatorPod" -}}
serviceAccountName: transship-operator
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.operator.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.operator.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.operator.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
{{- end }}
