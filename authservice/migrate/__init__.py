"""From another service's configuration to ours: what it says, in our settings, and what we cannot say.

`options` reads oauth2-proxy's options wherever they stand; `provider`, `people`, `places` and `sessions` each
know what a part of them is with us; `listed` has those that need no thought; `plan` is what comes of all
that, and `oauth2_proxy` makes it. Nothing here asks a network or changes anything. The command is
`authservice.cli_migrate`.

The one rule of all parts: who was refused before is never let in. A restriction that cannot be said in our
settings closes the service until a person has looked at it.
"""
