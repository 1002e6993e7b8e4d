"""Istio's policies: who may call what, with which claims, as the same YAML that a mesh enforces.

A *policy* is one resource (`AuthorizationPolicy`, `RequestAuthentication`). An `AuthorizationPolicy` has
*rules*, and a rule has *conditions*: what its sources, its operations and its ``when`` ask for. A *workload* is
what a host stands for: a namespace and labels, by which policies select it. `read` makes resources of YAML,
`compile` makes a policy set of resources and workloads, `match` compares values, `current` holds the set that
counts now. Nothing here knows HTTP, gateways or sessions; `authz.policy` and `authn.request` ask.
"""
