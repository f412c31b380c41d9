{{- define "inkserve.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "inkserve.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "inkserve.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "inkserve.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* Labels that never change over a release's life: selectors are immutable. */}}
{{- define "inkserve.selectorLabels" -}}
app.kubernetes.io/name: {{ include "inkserve.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: server
{{- end }}

{{- /* The labels of an object. A component, where it has one, follows. */}}
{{- define "inkserve.labels" -}}
{{- include "inkserve.labelsWith" (dict "root" . "labels" dict) }}
{{- end }}

{{- /* The same with `labels` of the object's section. The first of equal keys wins. */}}
{{- define "inkserve.labelsWith" -}}
{{- $own := include "inkserve.ownLabels" .root | fromYaml }}
{{- merge $own .labels (omit .root.Values.commonLabels "app.kubernetes.io/component") | toYaml }}
{{- end }}

{{- define "inkserve.ownLabels" -}}
app.kubernetes.io/name: {{ include "inkserve.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" | quote }}
{{- end }}

{{- /* The labels of the service's pods. A change of one replaces every pod, so the chart's version is not among them, and
the version is that of the image. */}}
{{- define "inkserve.podLabels" -}}
{{- $version := .Values.image.tag | default .Chart.AppVersion | trunc 63 | trimAll "-_." }}
{{- $own := omit (include "inkserve.ownLabels" . | fromYaml) "helm.sh/chart" | merge (dict "app.kubernetes.io/version" $version) }}
{{- merge (include "inkserve.selectorLabels" . | fromYaml) $own .Values.podLabels .Values.commonLabels | toYaml }}
{{- end }}

{{- /* The field `annotations` from dict "root" $ "own" {...}, or nothing. The object's own win over the common ones. */}}
{{- define "inkserve.annotations" -}}
{{- with merge (deepCopy .own) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "inkserve.podAnnotations" -}}
{{- $annotations := merge (deepCopy .Values.podAnnotations) .Values.commonAnnotations }}
{{- if .Values.split.enabled }}
{{- $annotations = merge $annotations (dict "kubectl.kubernetes.io/default-container" "http") }}
{{- end }}
{{- if .Values.apiKeys.inline }}
{{- /* New keys replace the pods, because the pod template changes. */}}
{{- $annotations = merge (dict "checksum/api-keys" (.Values.apiKeys.inline | toJson | sha256sum)) $annotations }}
{{- end }}
{{- with $annotations }}
{{- toYaml . }}
{{- end }}
{{- end }}

{{- define "inkserve.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "inkserve.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- /* "true" if a pod requests a GPU. */}}
{{- define "inkserve.gpu" -}}
{{- if ne (.Values.settings.provider | default "cpu") "cpu" }}true{{ end }}
{{- end }}

{{- define "inkserve.image" -}}
{{- $tag := .Values.image.tag | default (printf "%s%s" .Chart.AppVersion (ternary "-gpu" "" (eq (include "inkserve.gpu" .) "true"))) }}
{{- with .Values.image.registry }}{{ . }}/{{ end }}{{ .Values.image.repository }}:{{ $tag }}{{ with .Values.image.digest }}@{{ . }}{{ end }}
{{- end }}

{{- /* The settings as environment variables. Helm reads numbers as floats, and prints integers as 1.6777216e+07. */}}
{{- define "inkserve.env" -}}
{{- $drain := include "inkserve.drainSeconds" .root | float64 }}
{{- range $name, $value := set (deepCopy .root.Values.settings) "drainSeconds" $drain }}
{{- if not (kindIs "invalid" $value) }}
- name: INKSERVE_{{ $name | snakecase | upper }}
  {{- if and (kindIs "float64" $value) (eq $value (floor $value)) }}
  value: {{ $value | int64 | toString | quote }}
  {{- else }}
  value: {{ $value | toString | quote }}
  {{- end }}
{{- end }}
{{- end }}
{{- if .half }}
- name: INKSERVE_SOCKET
  value: {{ include "inkserve.socket" .root }}
{{- end }}
{{- if eq .half "http" }}
- name: INKSERVE_WORKERS
  value: {{ .root.Values.split.workers | int64 | toString | quote }}
{{- end }}
{{- if .root.Values.tracing.enabled }}
{{- include "inkserve.tracingEnv" . }}
{{- end }}
{{- if and (ne .half "engine") (include "inkserve.apiKeysSecret" .root) }}
- name: INKSERVE_API_KEYS_FILE
  value: {{ include "inkserve.apiKeysFile" .root }}
{{- end }}
{{- if and (ne .half "engine") .root.Values.tls.existingSecret }}
{{- include "inkserve.tlsEnv" .root }}
{{- end }}
{{- if and (ne .half "http") .root.Values.models.trustedKeysConfigMap }}
- name: INKSERVE_TRUSTED_KEYS
  value: {{ include "inkserve.trustedKeysDir" .root }}
{{- end }}
{{- if include "inkserve.gpu" .root }}
{{- if eq .half "http" }}
# Under NVIDIA's runtime an image that requests all GPUs of a node would get them in this container too.
- name: NVIDIA_VISIBLE_DEVICES
  value: void
{{- else }}
- name: CUDA_CACHE_PATH
  value: /tmp/cuda
{{- end }}
{{- end }}
{{- end }}

{{- define "inkserve.tlsEnv" }}
- name: INKSERVE_SSL_CERTFILE
  value: {{ include "inkserve.tlsDir" . }}/tls.crt
- name: INKSERVE_SSL_KEYFILE
  value: {{ include "inkserve.tlsDir" . }}/tls.key
{{- if .Values.tls.clientCA.existingSecret }}
- name: INKSERVE_SSL_CA_CERTS
  value: {{ include "inkserve.clientCADir" . }}/ca.crt
# The kubelet's probes send no certificate.
- name: INKSERVE_SSL_CLIENT_AUTH
  value: {{ eq .Values.tls.clientCA.mode "required" | ternary "required-except-probes" "optional" }}
{{- end }}
{{- end }}

{{- /* The service's setting, and the OpenTelemetry SDK's variables. */}}
{{- define "inkserve.tracingEnv" }}
{{- $tracing := .root.Values.tracing }}
- name: INKSERVE_TRACING
  value: otlp
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ $tracing.endpoint | quote }}
- name: OTEL_TRACES_SAMPLER
  value: {{ $tracing.sampler }}
{{- if hasSuffix "traceidratio" $tracing.sampler }}
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ $tracing.ratio | toString | quote }}
{{- end }}
- name: OTEL_SERVICE_NAME
  value: {{ include "inkserve.fullname" .root | quote }}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: OTEL_RESOURCE_ATTRIBUTES
  value: {{ printf "k8s.namespace.name=%s,k8s.pod.name=$(POD_NAME),k8s.container.name=%s" .root.Release.Namespace (.half | default "inkserve") | quote }}
{{- end }}

{{- define "inkserve.collectorPort" -}}
{{- $given := .Values.tracing.collector.port }}
{{- $url := regexReplaceAll "^(https?)://[^/:]+(:([0-9]+))?.*$" .Values.tracing.endpoint "$1 $3" | splitList " " }}
{{- if not (kindIs "invalid" $given) }}
{{- int64 $given }}
{{- else if last $url }}
{{- last $url }}
{{- else }}
{{- eq (first $url) "https" | ternary 443 80 }}
{{- end }}
{{- end }}

{{- define "inkserve.dnsEgress" -}}
- ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
{{- end }}

{{- /* The Secret that holds the API keys; empty if none are required. */}}
{{- define "inkserve.apiKeysSecret" -}}
{{- if .Values.apiKeys.existingSecret }}
{{- .Values.apiKeys.existingSecret }}
{{- else if .Values.apiKeys.inline }}
{{- printf "%s-api-keys" (include "inkserve.fullname" . | trunc 54 | trimSuffix "-") }}
{{- end }}
{{- end }}

{{- define "inkserve.apiKeysFile" -}}
/etc/inkserve/api-keys/keys
{{- end }}

{{- define "inkserve.tlsDir" -}}
/etc/inkserve/tls
{{- end }}

{{- define "inkserve.clientCADir" -}}
/etc/inkserve/client-ca
{{- end }}

{{- /* Where the service's callers in the chart have its authority, and their own certificate. */}}
{{- define "inkserve.serverCADir" -}}
/etc/inkserve/server-ca
{{- end }}

{{- define "inkserve.clientTlsDir" -}}
/etc/inkserve/client-tls
{{- end }}

{{- define "inkserve.scheme" -}}
{{- ternary "https" "http" (ne .Values.tls.existingSecret "") }}
{{- end }}

{{- /* The Service's name that a certificate must have. */}}
{{- define "inkserve.serverName" -}}
{{ include "inkserve.fullname" . }}.{{ .Release.Namespace }}.svc
{{- end }}

{{- define "inkserve.trustedKeysDir" -}}
/etc/inkserve/trusted-keys
{{- end }}

{{- define "inkserve.modelsDir" -}}
{{- required "inkserve: settings.modelsDir is unset, expected the folder of the models in the pod" .Values.settings.modelsDir }}
{{- end }}

{{- define "inkserve.port" -}}
{{- .Values.settings.port | default 8000 | int64 }}
{{- end }}

{{- /* The service's URL in its own namespace. */}}
{{- define "inkserve.url" -}}
{{ include "inkserve.scheme" . }}://{{ include (.Values.tls.existingSecret | empty | ternary "inkserve.fullname" "inkserve.serverName") . }}:{{ .Values.service.port | int64 }}
{{- end }}

{{- define "inkserve.minReplicas" -}}
{{- ternary .Values.replicas .Values.autoscaling.minReplicas (eq .Values.autoscaling.mode "off") | int64 }}
{{- end }}

{{- define "inkserve.maxReplicas" -}}
{{- ternary .Values.replicas .Values.autoscaling.maxReplicas (eq .Values.autoscaling.mode "off") | int64 }}
{{- end }}

{{- /* The Deployment's replicas, or nothing. An autoscaler sets them, but without the field the upgrade that turns it on
would go through Kubernetes' default of 1. So keep what there is; `lookup` finds nothing on the first installation and in
tools that only render, whose next sync must not reset what the autoscaler has set. */}}
{{- define "inkserve.replicas" -}}
{{- if eq .Values.autoscaling.mode "off" }}
{{- .Values.replicas | int64 }}
{{- else }}
{{- with lookup "apps/v1" "Deployment" .Release.Namespace (include "inkserve.fullname" .) }}
{{- .spec.replicas | int64 }}
{{- end }}
{{- end }}
{{- end }}

{{- define "inkserve.drainSeconds" -}}
{{- $given := .Values.settings.drainSeconds }}
{{- $surge := int64 .Values.rollingUpdate.maxSurge }}
{{- if not (kindIs "invalid" $given) }}
{{- $given }}
{{- else if and (eq (include "inkserve.maxReplicas" .) "1") (eq $surge 0) }}
{{- 0 }}
{{- else }}
{{- 10 }}
{{- end }}
{{- end }}

{{- /* The longest time from SIGTERM to the exit; an earlier SIGKILL would lose accepted requests. */}}
{{- define "inkserve.gracePeriodSeconds" -}}
{{- $timeout := .Values.settings.shutdownTimeoutSeconds | default 30 }}
{{- /* An unresponsive collector delays the last spans by the SDK's timeout of 10 s. */}}
{{- $spans := .Values.tracing.enabled | ternary 10 0 }}
{{- $sleep := dig "preStop" "sleep" "seconds" .Values.preStopSleepSeconds .Values.lifecycle }}
{{- $needed := addf (include "inkserve.drainSeconds" . | float64) $timeout $sleep 5 $spans | ceil | int64 }}
{{- $given := .Values.terminationGracePeriodSeconds }}
{{- if kindIs "invalid" $given }}
{{- $needed }}
{{- else if lt (int64 $given) $needed }}
{{- fail (printf "inkserve: terminationGracePeriodSeconds is %d, expected at least %d: preStopSleepSeconds or lifecycle's sleep + drainSeconds + shutdownTimeoutSeconds + 5, and 10 more with tracing.enabled" (int64 $given) $needed) }}
{{- else }}
{{- int64 $given }}
{{- end }}
{{- end }}

{{- /* Both halves of the restricted pod security standard. An id that is null is left out, because int64 would make it
root's 0: the platform or the image then chooses it, and runAsNonRoot rejects root. */}}
{{- define "inkserve.podSecurityContext" -}}
runAsNonRoot: true
{{- range $name := list "runAsUser" "runAsGroup" "fsGroup" }}
{{- $id := index $.Values.podSecurity $name }}
{{- if not (kindIs "invalid" $id) }}
{{ $name }}: {{ $id | int64 }}
{{- end }}
{{- end }}
{{- if not (kindIs "invalid" .Values.podSecurity.fsGroup) }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "inkserve.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "inkserve.tolerations" -}}
{{- $all := .Values.tolerations }}
{{- if include "inkserve.gpu" . }}{{ $all = concat $all .Values.gpu.tolerations }}{{ end }}
{{- with $all }}
{{- toYaml . }}
{{- end }}
{{- end }}

{{- /* The port of gRPC in a Service. `kubernetes.io/h2c` tells gateways and meshes to speak HTTP/2 without TLS. */}}
{{- define "inkserve.grpcServicePort" -}}
{{- with .Values.settings.grpcPort }}
- name: grpc
  port: {{ . | int64 }}
  targetPort: grpc
  appProtocol: {{ ternary "https" "kubernetes.io/h2c" (eq (include "inkserve.scheme" $) "https") }}
{{- end }}
{{- end }}

{{- /* Conflicts between values, which the schema cannot express. The service would reject them at startup. */}}
{{- define "inkserve.check" -}}
{{- if eq (int64 (.Values.settings.agentPort | default 0)) (include "inkserve.port" . | int64) }}
{{- fail (printf "inkserve: settings.agentPort is %d, expected another port than settings.port" (int64 .Values.settings.agentPort)) }}
{{- end }}
{{- with .Values.settings.grpcPort }}
{{- $taken := dict "settings.port" (include "inkserve.port" $ | int64) "settings.agentPort" (int64 ($.Values.settings.agentPort | default 0)) "service.port" (int64 $.Values.service.port) }}
{{- range $name, $port := $taken }}
{{- if eq $port (int64 $.Values.settings.grpcPort) }}
{{- fail (printf "inkserve: settings.grpcPort is %d, expected another port than %s" $port $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- $memory := .Values.settings.maxDeviceMemoryBytes }}
{{- $provider := .Values.settings.provider | default "cpu" }}
{{- if and $memory (ne $provider "cuda") }}
{{- fail (printf "inkserve: settings.maxDeviceMemoryBytes is %d, expected none with settings.provider %s: it bounds CUDA's memory" (int64 $memory) $provider) }}
{{- end }}
{{- if and .Values.settings.tf32 (ne $provider "cuda") }}
{{- fail (printf "inkserve: settings.tf32 is true, expected false with settings.provider %s: it is CUDA's" $provider) }}
{{- end }}
{{- $request := .Values.settings.maxRequestRows | default 4096 | int64 }}
{{- $queue := .Values.settings.maxQueueRows | default 16384 | int64 }}
{{- if gt $request $queue }}
{{- fail (printf "inkserve: settings.maxRequestRows is %d, expected at most settings.maxQueueRows (%d)" $request $queue) }}
{{- end }}
{{- if .Values.split.enabled }}
{{- range $name := list "workers" "socket" }}
{{- $value := index $.Values.settings $name }}
{{- if not (kindIs "invalid" $value) }}
{{- fail (printf "inkserve: settings.%s is %v, expected none with split.enabled, which sets it" $name $value) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and .Values.tracing.enabled (not (kindIs "invalid" .Values.settings.tracing)) }}
{{- fail (printf "inkserve: settings.tracing is %s, expected none with tracing.enabled, which sets it" .Values.settings.tracing) }}
{{- end }}
{{- if and .Values.apiKeys.existingSecret .Values.apiKeys.inline }}
{{- fail (printf "inkserve: apiKeys.existingSecret is %s, expected none with apiKeys.inline" .Values.apiKeys.existingSecret) }}
{{- end }}
{{- if and (include "inkserve.apiKeysSecret" .) .Values.settings.apiKeysFile }}
{{- fail (printf "inkserve: settings.apiKeysFile is %s, expected none with apiKeys, which sets it" .Values.settings.apiKeysFile) }}
{{- end }}
{{- range $name := list "sslCertfile" "sslKeyfile" "sslKeyfilePasswordFile" "sslCaCerts" "sslClientAuth" }}
{{- $value := index $.Values.settings $name }}
{{- if not (has $value (list nil "off")) }}
{{- fail (printf "inkserve: settings.%s is %v, expected none: tls mounts the files, and sets it" $name $value) }}
{{- end }}
{{- end }}
{{- if and .Values.tls.clientCA.existingSecret (eq .Values.tls.clientCA.mode "required") (not .Values.tls.clientSecret) }}
{{- range $name := list "test" "loadTest" "serviceMonitor" "podMonitor" }}
{{- if (index $.Values $name).enabled }}
{{- fail (printf "inkserve: tls.clientSecret is empty, expected the client certificate that %s needs with tls.clientCA; or set %s.enabled to false" $name $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and .Values.models.trustedKeysConfigMap .Values.settings.trustedKeys }}
{{- fail (printf "inkserve: settings.trustedKeys is %s, expected none with models.trustedKeysConfigMap, which sets it" .Values.settings.trustedKeys) }}
{{- end }}
{{- if and (ne .Values.autoscaling.mode "off") (gt (int64 .Values.autoscaling.minReplicas) (int64 .Values.autoscaling.maxReplicas)) }}
{{- fail (printf "inkserve: autoscaling.minReplicas is %d, expected at most maxReplicas (%d)" (int64 .Values.autoscaling.minReplicas) (int64 .Values.autoscaling.maxReplicas)) }}
{{- end }}
{{- $metrics := dict "hpa" (list "metrics" .Values.autoscaling.metrics) "keda" (list "keda.triggers" .Values.autoscaling.keda.triggers) }}
{{- range $mode, $given := $metrics }}
{{- if and (eq $.Values.autoscaling.mode $mode) (not $.Values.autoscaling.targetLoad) (not (last $given)) }}
{{- fail (printf "inkserve: autoscaling.targetLoad is 0, expected a metric in autoscaling.%s to scale on instead" (first $given)) }}
{{- end }}
{{- if and (not (has $.Values.autoscaling.mode (list "off" $mode))) (last $given) }}
{{- fail (printf "inkserve: autoscaling.%s is set, expected mode %s, which reads it, not %s" (first $given) $mode $.Values.autoscaling.mode) }}
{{- end }}
{{- end }}
{{- include "inkserve.checkExtras" . }}
{{- end }}

{{- /* Up at once, because rows are queued; down slowly, because load comes back. */}}
{{- define "inkserve.scalingBehavior" -}}
{{- $down := dict "stabilizationWindowSeconds" (int64 .Values.autoscaling.scaleDownStabilizationSeconds) }}
{{- $own := dict "scaleUp" (dict "stabilizationWindowSeconds" 0) "scaleDown" $down }}
{{- mergeOverwrite $own .Values.autoscaling.behavior | toYaml }}
{{- end }}
