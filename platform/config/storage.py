"""Read from the environment where snapshots are kept."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from config.environment import BadSetting

# A larger object goes through a file on its way.
MEMORY_BYTES = 16 * 1024 * 1024


def snapshot_storage(url: str) -> dict[str, Any]:
    """Return Django's settings for a bucket s3://name/prefix; nothing where there is no URL."""
    if not url:
        return {}
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise BadSetting("SNAPSHOT_STORAGE must be s3://bucket or s3://bucket/prefix.")
    options = {
        "bucket_name": parts.netloc,
        "location": parts.path.strip("/"),
        # Some servers know a bucket by its path only: set it to “path” for those.
        "addressing_style": os.environ.get("AWS_S3_ADDRESSING_STYLE"),
        "max_memory_size": MEMORY_BYTES,
    }
    return {"snapshots": {"BACKEND": "storages.backends.s3.S3Storage", "OPTIONS": options}}
