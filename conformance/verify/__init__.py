"""One verdict about anyone's class: the contracts of its kind, and every fixture that applies."""

from __future__ import annotations

from conformance.verify.target import open_target as open_target
from conformance.verify.verification import Verification as Verification
from conformance.verify.verification import verify as verify
