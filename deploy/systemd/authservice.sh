#!/bin/sh
# The command `authservice` with the settings of the service, for root:
#
#   install -m 0755 authservice.sh /usr/local/bin/authservice
#   sudo authservice check-config
#   sudo authservice sessions list

set -a
. /etc/authservice/authservice.env
# What the service gets as a credential: one line for each LoadCredential= of the unit.
CLIENT_SECRET_FILE=/etc/authservice/client-secret

exec /opt/authservice/bin/authservice "$@"
