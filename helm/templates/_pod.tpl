{{- /* The parts of a pod that runs the service. */}}

{{- /* A container is rendered from dict "root" $ "half" "": "" runs everything, "engine" and "http" are the halves. */}}

{{- define "inkserve.containers" -}}
{{- if .Values.split.enabled }}
{{- include "inkserve.container" (dict "root" . "half" "engine") | trim }}
{{ include "inkserve.container" (dict "root" . "half" "http") | trim }}
{{- else }}
{{- include "inkserve.container" (dict "root" . "half" "") | trim }}
{{- end }}
{{- end }}

{{- define "inkserve.container" -}}
{{- $root := .root }}
{{- $values := $root.Values }}
- name: {{ .half | default "inkserve" }}
  image: {{ include "inkserve.image" $root | quote }}
  imagePullPolicy: {{ $values.image.pullPolicy }}
  {{- with .half }}
  args: [{{ . }}]
  {{- end }}
  env:
    {{- include "inkserve.env" . | trim | nindent 4 }}
    {{- with $values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $values.extraEnvFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if eq .half "engine" }}
  {{- include "inkserve.engineProbes" $root | trim | nindent 2 }}
  {{- else }}
  ports:
    - name: http
      containerPort: {{ include "inkserve.port" $root }}
    {{- with $values.settings.grpcPort }}
    - name: grpc
      containerPort: {{ . | int64 }}
    {{- end }}
    {{- with $values.settings.agentPort }}
    - name: agent
      containerPort: {{ . | int64 }}
    {{- end }}
  {{- include "inkserve.probes" $root | trim | nindent 2 }}
  {{- end }}
  {{- with include "inkserve.lifecycle" $root }}
  lifecycle:
    {{- . | nindent 4 }}
  {{- end }}
  resources:
    {{- include "inkserve.resources" . | nindent 4 }}
  securityContext:
    {{- include "inkserve.containerSecurityContext" $root | nindent 4 }}
  volumeMounts:
    - name: tmp
      mountPath: /tmp
    {{- if .half }}
    - name: socket
      mountPath: {{ include "inkserve.socketDir" $root }}
    {{- end }}
    {{- if ne .half "http" }}
    {{- with include "inkserve.modelsMount" $root }}
    {{- . | trim | nindent 4 }}
    {{- end }}
    {{- if $values.models.trustedKeysConfigMap }}
    - name: trusted-keys
      mountPath: {{ include "inkserve.trustedKeysDir" $root }}
      readOnly: true
    {{- end }}
    {{- end }}
    {{- if ne .half "engine" }}
    {{- with include "inkserve.apiKeysMount" $root }}
    {{- . | trim | nindent 4 }}
    {{- end }}
    {{- with include "inkserve.tlsMounts" $root }}
    {{- . | trim | nindent 4 }}
    {{- end }}
    {{- end }}
    {{- with $values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{- define "inkserve.volumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ .Values.tmpSizeLimit | quote }}
{{- if .Values.split.enabled }}
- name: socket
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
{{- end }}
{{- with include "inkserve.modelsVolume" . }}
{{ . | trim }}
{{- end }}
{{- with .Values.models.trustedKeysConfigMap }}
- name: trusted-keys
  configMap:
    name: {{ . | quote }}
{{- end }}
{{- with include "inkserve.apiKeysVolume" . }}
{{ . | trim }}
{{- end }}
{{- with include "inkserve.tlsVolumes" . }}
{{ . | trim }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Mounts the folder, not one file in it: Kubernetes does not update a mounted file when the keys change. */}}
{{- define "inkserve.apiKeysMount" -}}
{{- if include "inkserve.apiKeysSecret" . }}
- name: api-keys
  mountPath: {{ include "inkserve.apiKeysFile" . | dir }}
  readOnly: true
{{- end }}
{{- end }}

{{- define "inkserve.apiKeysVolume" -}}
{{- with include "inkserve.apiKeysSecret" . }}
- name: api-keys
  secret:
    secretName: {{ . | quote }}
    # Read through the fsGroup.
    defaultMode: 0440
    items:
      - key: {{ $.Values.apiKeys.key | quote }}
        path: {{ include "inkserve.apiKeysFile" $ | base }}
{{- end }}
{{- end }}

{{- /* Folders for the same reason: renewed certificates must arrive. */}}
{{- define "inkserve.tlsMounts" -}}
{{- if .Values.tls.existingSecret }}
- name: tls
  mountPath: {{ include "inkserve.tlsDir" . }}
  readOnly: true
{{- end }}
{{- if .Values.tls.clientCA.existingSecret }}
- name: client-ca
  mountPath: {{ include "inkserve.clientCADir" . }}
  readOnly: true
{{- end }}
{{- end }}

{{- define "inkserve.tlsVolumes" -}}
{{- with .Values.tls.existingSecret }}
{{- include "inkserve.secretVolume" (dict "name" "tls" "secret" . "items" (dict "tls.crt" "tls.crt" "tls.key" "tls.key")) }}
{{- end }}
{{- with .Values.tls.clientCA }}
{{- if .existingSecret }}
{{ include "inkserve.secretVolume" (dict "name" "client-ca" "secret" .existingSecret "items" (dict .key "ca.crt")) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* What a caller of the service mounts: the service's authority without its key, and a certificate of its own. */}}
{{- define "inkserve.callerTlsMounts" -}}
{{- if and .Values.tls.existingSecret .Values.tls.caKey }}
- name: server-ca
  mountPath: {{ include "inkserve.serverCADir" . }}
  readOnly: true
{{- end }}
{{- if .Values.tls.clientSecret }}
- name: client-tls
  mountPath: {{ include "inkserve.clientTlsDir" . }}
  readOnly: true
{{- end }}
{{- end }}

{{- define "inkserve.callerTlsVolumes" -}}
{{- $tls := .Values.tls }}
{{- if and $tls.existingSecret $tls.caKey }}
{{- include "inkserve.secretVolume" (dict "name" "server-ca" "secret" $tls.existingSecret "items" (dict $tls.caKey "ca.crt")) }}
{{- end }}
{{- with $tls.clientSecret }}
{{ include "inkserve.secretVolume" (dict "name" "client-tls" "secret" . "items" (dict "tls.crt" "tls.crt" "tls.key" "tls.key")) }}
{{- end }}
{{- end }}

{{- /* The keys and the certificates of the containers that call the service. */}}
{{- define "inkserve.callerMounts" -}}
{{- list (include "inkserve.apiKeysMount" . | trim) (include "inkserve.callerTlsMounts" . | trim) | compact | join "\n" }}
{{- end }}

{{- define "inkserve.callerVolumes" -}}
{{- list (include "inkserve.apiKeysVolume" . | trim) (include "inkserve.callerTlsVolumes" . | trim) | compact | join "\n" }}
{{- end }}

{{- define "inkserve.callerTlsFlags" -}}
{{- if and .Values.tls.existingSecret .Values.tls.caKey }}
- --ca-file={{ include "inkserve.serverCADir" . }}/ca.crt
{{- end }}
{{- if .Values.tls.clientSecret }}
- --client-cert-file={{ include "inkserve.clientTlsDir" . }}/tls.crt
- --client-key-file={{ include "inkserve.clientTlsDir" . }}/tls.key
{{- end }}
{{- end }}

{{- define "inkserve.secretVolume" -}}
- name: {{ .name }}
  secret:
    secretName: {{ .secret | quote }}
    # Read through the fsGroup.
    defaultMode: 0440
    items:
      {{- range $key, $path := .items }}
      - key: {{ $key | quote }}
        path: {{ $path }}
      {{- end }}
{{- end }}

{{- define "inkserve.probe" -}}
periodSeconds: {{ .periodSeconds | int64 }}
timeoutSeconds: {{ .timeoutSeconds | int64 }}
failureThreshold: {{ .failureThreshold | int64 }}
{{- end }}

{{- define "inkserve.probes" -}}
{{- $paths := dict "startup" "/v2/health/live" "readiness" "/v2/health/ready" "liveness" "/v2/health/live" }}
{{- range $kind, $path := $paths }}
{{ $kind }}Probe:
  httpGet:
    path: {{ $path | quote }}
    port: http
    {{- if $.Values.tls.existingSecret }}
    scheme: HTTPS
    {{- end }}
  {{- include "inkserve.probe" (index $.Values.probes $kind) | nindent 2 }}
{{- end }}
{{- end }}

{{- /* The engine has no port, only its socket, which opens when its models are warm. It needs no readiness probe: the
other container is ready only while it is connected to a ready engine. */}}
{{- define "inkserve.engineProbes" -}}
{{- range $kind := list "startup" "liveness" }}
{{ $kind }}Probe:
  exec:
    command: [python, -m, service, ping, {{ include "inkserve.socket" $ }}]
  {{- include "inkserve.probe" (index $.Values.probes $kind) | nindent 2 }}
  {{- if eq $kind "liveness" }}
  # A hung engine answers no requests, so there is nothing to wait for.
  terminationGracePeriodSeconds: 5
  {{- end }}
{{- end }}
{{- end }}

{{- define "inkserve.socketDir" -}}
/run/inkserve
{{- end }}

{{- define "inkserve.socket" -}}
{{ include "inkserve.socketDir" . }}/engine.sock
{{- end }}

{{- define "inkserve.resources" -}}
{{- $values := .root.Values }}
{{- $resources := deepCopy $values.resources }}
{{- if .half }}{{ $resources = deepCopy (index $values.split .half).resources }}{{ end }}
{{- if and (include "inkserve.gpu" .root) (ne .half "http") }}
{{- /* Kubernetes copies an extended resource's request from its limit. */}}
{{- $_ := set $resources "limits" (merge (dict $values.gpu.resource 1) ($resources.limits | default dict)) }}
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
    # Spread each rollout separately, because the old pods are about to be removed.
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- end }}

{{- /* Empty for models in the image: a mount would hide them. */}}
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

{{- /* rclone reads its remote `store` from the environment, so no file with secrets is mounted. */}}
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
    # This file does not exist: without the variable rclone looks for its configuration in a missing home folder.
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

{{- /* A container that checks the service from outside its pods; the caller may append flags. */}}
{{- define "inkserve.smoke" -}}
image: {{ include "inkserve.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command: [python, -c]
args:
  - |
    {{- .Files.Get "files/smoke.py" | nindent 4 }}
  - {{ include "inkserve.url" . | quote }}
  - {{ printf "--expected-label=%s" .Values.test.expectedLabel | quote }}
  {{- if not .Values.test.generate }}
  - --no-generate
  {{- end }}
  {{- if include "inkserve.apiKeysSecret" . }}
  - --api-keys-file={{ include "inkserve.apiKeysFile" . }}
  {{- end }}
  {{- with include "inkserve.callerTlsFlags" . }}
  {{- . | trim | nindent 2 }}
  {{- end }}
{{- end }}
