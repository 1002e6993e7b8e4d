"""The API server of a Kubernetes cluster: where it is, who we are to it, and what it says of a token.

`cluster` finds the cluster that an environment describes, `kubeconfig` reads the files that people
have outside of one, both as `access`, and `reviews` asks. What an answer means for a request is
`authservice.authn.kubernetes`' business.
"""
