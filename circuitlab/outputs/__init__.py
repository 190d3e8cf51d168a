"""Where results are written: checked and reserved before the work, whole or not at all afterwards."""

from circuitlab.outputs.files import put_file, put_tables, reserved_file, reserved_tables
from circuitlab.outputs.lock import LOCK
from circuitlab.outputs.paths import at_home, check_path, check_state_file
from circuitlab.outputs.reserve import Reserved, Rules, reserved

__all__ = [
    "LOCK",
    "Reserved",
    "Rules",
    "at_home",
    "check_path",
    "check_state_file",
    "put_file",
    "put_tables",
    "reserved",
    "reserved_file",
    "reserved_tables",
]
