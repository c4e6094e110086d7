"""Where things are in the guest. Part of the image's recipe: keep it small."""

GUEST_SOURCE = "/opt/agentres/src"
GUEST_VENV = "/opt/agentres/venv"
GUEST_WHEELS = "/opt/agentres/wheels"
# Where a running `exec` leaves its process group and exit status, for the host to act on.
GUEST_EXEC_DIR = "/run/agentres-exec"
GUEST_USER = "dev"
USERS = ("root", GUEST_USER)
