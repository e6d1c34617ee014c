"""What all tests share: properties are judged by what they find, not by how long a busy machine takes to look."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("dysco", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dysco")
