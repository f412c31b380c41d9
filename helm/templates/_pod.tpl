{{- /* The parts of a pod that runs the service. */}}

{{- define "inkserve.probes" -}}
{{- $paths := dict "startup" "/v2/health/live" "readiness" "/v2/health/ready" "liveness" "/v2/health/live" }}
{{- range $kind, $path := $paths }}
{{- $probe := index $.Values.probes $kind }}
{{ $kind }}Probe:
  httpGet:
    path: {{ $path | quote }}
    port: http
  periodSeconds: {{ $probe.periodSeconds | int64 }}
  timeoutSeconds: {{ $probe.timeoutSeconds | int64 }}
  failureThreshold: {{ $probe.failureThreshold | int64 }}
{{- end }}
{{- end }}

{{- define "inkserve.resources" -}}
{{- $resources := deepCopy .Values.resources }}
{{- if include "inkserve.gpu" . }}
{{- /* Kubernetes takes an extended resource's request from its limit. */}}
{{- $_ := set $resources "limits" (merge (dict .Values.gpu.resource 1) ($resources.limits | default dict)) }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{- define "inkserve.topologySpread" -}}
{{- $keys := dict "topology.kubernetes.io/zone" .Values.topologySpread.zone "kubernetes.io/hostname" .Values.topologySpread.host }}
{{- $on := list }}
{{- range $key, $when := $keys }}
{{- if ne $when "off" }}{{ $on = append $on $key }}{{ end }}
{{- end }}
{{- if $on }}
topologySpreadConstraints:
  {{- range $on }}
  - topologyKey: {{ . | quote }}
    maxSkew: 1
    whenUnsatisfiable: {{ index $keys . }}
    labelSelector:
      matchLabels:
        {{- include "inkserve.selectorLabels" $ | nindent 8 }}
    # Each rollout is spread by itself; the old pods go anyway.
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- end }}

{{- /* Nothing for models in the image: a mount would hide them. */}}
{{- define "inkserve.modelsMount" -}}
{{- if ne .Values.models.source "image" }}
- name: models
  mountPath: {{ include "inkserve.modelsDir" . | quote }}
  readOnly: true
  {{- $source := index .Values.models .Values.models.source }}
  {{- with $source.subPath }}
  subPath: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "inkserve.modelsVolume" -}}
{{- $models := .Values.models }}
{{- if ne $models.source "image" }}
- name: models
  {{- if eq $models.source "persistentVolumeClaim" }}
  persistentVolumeClaim:
    claimName: {{ $models.persistentVolumeClaim.claimName | quote }}
    readOnly: true
  {{- else if eq $models.source "imageVolume" }}
  image:
    reference: {{ $models.imageVolume.reference | quote }}
    pullPolicy: {{ $models.imageVolume.pullPolicy }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ $models.objectStore.sizeLimit | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{- /* rclone reads its remote `store` from the environment, so that no file with secrets is mounted. */}}
{{- define "inkserve.fetchModels" -}}
{{- $store := .Values.models.objectStore }}
- name: fetch-models
  image: {{ $store.image | quote }}
  imagePullPolicy: IfNotPresent
  args:
    - copy
    - {{ printf "store:%s" $store.path | quote }}
    - {{ include "inkserve.modelsDir" . | quote }}
  env:
    # No such file: without the setting rclone looks for its configuration in a home that is not there.
    - name: RCLONE_CONFIG
      value: /tmp/rclone.conf
    {{- range $option, $value := $store.remote }}
    - name: RCLONE_CONFIG_STORE_{{ upper $option }}
      value: {{ $value | quote }}
    {{- end }}
  {{- with $store.credentialsSecret }}
  envFrom:
    - secretRef:
        name: {{ . | quote }}
  {{- end }}
  resources:
    requests:
      cpu: 100m
      memory: 64Mi
    limits:
      cpu: "1"
      memory: 512Mi
  securityContext:
    {{- include "inkserve.containerSecurityContext" . | nindent 4 }}
  volumeMounts:
    - name: tmp
      mountPath: /tmp
    - name: models
      mountPath: {{ include "inkserve.modelsDir" . | quote }}
{{- end }}
