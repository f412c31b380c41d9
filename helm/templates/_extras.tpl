{{- /* What users add to the pods of the service. */}}

{{- define "inkserve.initContainers" -}}
{{- if eq .Values.models.source "objectStore" }}
{{- include "inkserve.fetchModels" . }}
{{- end }}
{{- with include "inkserve.userContainers" .Values.initContainers }}
{{ . | trim }}
{{- end }}
{{- end }}

{{- /* Containers of the user's. Each field that their securityContext leaves open is the chart's: with the pod's, these
meet the restricted security standard. */}}
{{- define "inkserve.userContainers" -}}
{{- $own := include "inkserve.containerSecurityContext" . | fromYaml }}
{{- range . }}
{{- $security := deepCopy (.securityContext | default dict) }}
{{- range $field, $value := $own }}
{{- if not (hasKey $security $field) }}{{ $_ := set $security $field $value }}{{ end }}
{{- end }}
{{ list (set (deepCopy .) "securityContext" $security) | toYaml }}
{{- end }}
{{- end }}

{{- define "inkserve.lifecycle" -}}
{{- $lifecycle := deepCopy .Values.lifecycle }}
{{- with .Values.preStopSleepSeconds }}
{{- $_ := set $lifecycle "preStop" (dict "sleep" (dict "seconds" (int64 .))) }}
{{- end }}
{{- with $lifecycle }}
{{- toYaml . }}
{{- end }}
{{- end }}

{{- /* Kubernetes takes a node that fits any of the terms, and a term all of whose expressions fit. So the labels of `gpu`
join each term. */}}
{{- define "inkserve.affinity" -}}
{{- $affinity := deepCopy .Values.affinity }}
{{- if and (include "inkserve.gpu" .) .Values.gpu.nodeLabels }}
{{- $wanted := list }}
{{- range $label, $values := .Values.gpu.nodeLabels }}
{{- $wanted = append $wanted (dict "key" $label "operator" "In" "values" $values) }}
{{- end }}
{{- $required := "requiredDuringSchedulingIgnoredDuringExecution" }}
{{- $terms := list }}
{{- range dig "nodeAffinity" $required "nodeSelectorTerms" (list dict) $affinity }}
{{- $terms = append $terms (set . "matchExpressions" (concat (.matchExpressions | default list) $wanted)) }}
{{- end }}
{{- $nodes := set ($affinity.nodeAffinity | default dict) $required (dict "nodeSelectorTerms" $terms) }}
{{- $_ := set $affinity "nodeAffinity" $nodes }}
{{- end }}
{{- with $affinity }}
{{- toYaml . }}
{{- end }}
{{- end }}

{{- /* What the schema cannot express about the users' additions. */}}
{{- define "inkserve.checkExtras" -}}
{{- range .Values.extraEnv }}
{{- if hasPrefix "INKSERVE_" .name }}
{{- fail (printf "inkserve: extraEnv has %s, expected it in settings" .name) }}
{{- end }}
{{- end }}
{{- include "inkserve.checkNames" . }}
{{- with .Values.lifecycle.preStop }}
{{- if $.Values.preStopSleepSeconds }}
{{- fail (printf "inkserve: preStopSleepSeconds is %d, expected 0 with lifecycle.preStop" (int64 $.Values.preStopSleepSeconds)) }}
{{- end }}
{{- if and (not (hasKey . "sleep")) (kindIs "invalid" $.Values.terminationGracePeriodSeconds) }}
{{- fail (printf "inkserve: terminationGracePeriodSeconds is null, expected a number with lifecycle.preStop.%s, whose duration the chart cannot know" (keys . | first)) }}
{{- end }}
{{- end }}
{{- if and (eq .Values.dnsPolicy "None") (not .Values.dnsConfig.nameservers) }}
{{- fail "inkserve: dnsConfig.nameservers is empty, expected an address with dnsPolicy None" }}
{{- end }}
{{- range $name := list "nodePort" "externalTrafficPolicy" "loadBalancerClass" "loadBalancerSourceRanges" }}
{{- $types := hasPrefix "load" $name | ternary (list "LoadBalancer") (list "NodePort" "LoadBalancer") }}
{{- $value := index $.Values.service $name }}
{{- if and $value (not (has $.Values.service.type $types)) }}
{{- fail (printf "inkserve: service.%s is %v, expected none with service.type %s" $name $value $.Values.service.type) }}
{{- end }}
{{- end }}
{{- if and .Values.podMonitor.enabled .Values.serviceMonitor.enabled }}
{{- fail "inkserve: podMonitor.enabled is true, expected false with serviceMonitor.enabled: every pod would be counted twice" }}
{{- end }}
{{- end }}

{{- /* Kubernetes rejects equal names, or lets the last one win. */}}
{{- define "inkserve.checkNames" -}}
{{- $volumes := list }}
{{- range include "inkserve.volumes" . | fromYamlArray }}{{ $volumes = append $volumes .name }}{{ end }}
{{- include "inkserve.checkUnique" (dict "names" $volumes "in" "extraVolumes" "what" "volume of the pod") }}
{{- $containers := list }}
{{- range include "inkserve.containers" . | fromYamlArray }}
{{- $containers = append $containers .name }}
{{- $variables := list }}
{{- range .env }}{{ $variables = append $variables .name }}{{ end }}
{{- include "inkserve.checkUnique" (dict "names" $variables "in" "extraEnv" "what" "variable of the container") }}
{{- $paths := list }}
{{- range .volumeMounts }}{{ $paths = append $paths (clean .mountPath) }}{{ end }}
{{- include "inkserve.checkUnique" (dict "names" $paths "in" "extraVolumeMounts" "what" "mount of the container") }}
{{- end }}
{{- range include "inkserve.initContainers" . | fromYamlArray }}{{ $containers = append $containers .name }}{{ end }}
{{- include "inkserve.checkUnique" (dict "names" $containers "in" "initContainers" "what" "container of the pod") }}
{{- range .Values.sidecars }}{{ $containers = append $containers .name }}{{ end }}
{{- include "inkserve.checkUnique" (dict "names" $containers "in" "sidecars" "what" "container of the pod") }}
{{- end }}

{{- /* Only names of the value `in` can repeat one, because the chart's own differ. */}}
{{- define "inkserve.checkUnique" -}}
{{- $seen := dict }}
{{- range .names }}
{{- if hasKey $seen . }}
{{- fail (printf "inkserve: %s has %s, expected one that no other %s has" $.in . $.what) }}
{{- end }}
{{- $_ := set $seen . true }}
{{- end }}
{{- end }}
