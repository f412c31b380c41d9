{{- /* How Prometheus scrapes a pod, from dict "root" $ "monitor" serviceMonitor or podMonitor, and "relabelings" that come
before its own. */}}
{{- define "inkserve.scrape" -}}
port: http
path: /metrics
{{- with .root.Values.tls }}
{{- if .existingSecret }}
scheme: https
tlsConfig:
  # Prometheus scrapes addresses of pods.
  serverName: {{ include "inkserve.serverName" $.root | quote }}
  {{- if .caKey }}
  ca:
    secret:
      name: {{ .existingSecret | quote }}
      key: {{ .caKey | quote }}
  {{- end }}
  {{- with .clientSecret }}
  cert:
    secret:
      name: {{ . | quote }}
      key: tls.crt
  keySecret:
    name: {{ . | quote }}
    key: tls.key
  {{- end }}
{{- end }}
{{- end }}
interval: {{ .monitor.interval | quote }}
scrapeTimeout: {{ .monitor.scrapeTimeout | quote }}
{{- with concat .relabelings .monitor.relabelings }}
relabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .monitor.metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
