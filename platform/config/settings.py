"""Laurel's settings. Every value that a site may change comes from the environment."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg.conninfo
import structlog
from csp.constants import NONE, SELF

from config import services
from config.environment import env_base, env_bool, env_float, env_int, env_list, env_secret
from config.storage import snapshot_storage

BASE_DIR = Path(__file__).resolve().parents[2]
VAR_DIR = Path(os.environ.get("LAUREL_VAR", BASE_DIR / "var")).resolve()

# Security
DEBUG = env_bool("DEBUG", False)
SECRET_KEY = env_secret("SECRET_KEY", VAR_DIR / "secret_key")
ALLOWED_HOSTS = env_list("ALLOWED_HOSTS", ["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = env_list("CSRF_TRUSTED_ORIGINS", [])
BEHIND_TLS = env_bool("BEHIND_TLS", False)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = BEHIND_TLS
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if BEHIND_TLS else None
SECURE_HSTS_SECONDS = 31_536_000 if BEHIND_TLS else 0
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "script-src": [SELF],
        # The chart renderer writes style attributes into its SVG; scripts stay strict.
        "style-src": [SELF, "'unsafe-inline'"],
        "img-src": [SELF, "data:"],
        "object-src": [NONE],
        "base-uri": [SELF],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
    }
}

# A judgement carries at most a comment and a correction; a chat, its messages.
DATA_UPLOAD_MAX_MEMORY_SIZE = 4 * 1024 * 1024

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.humanize",
    "django.contrib.messages",
    "django.contrib.postgres",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "axes",
    "csp",
    "django_celery_beat",
    "django_htmx",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "knox",
    "rest_framework",
    "accounts",
    "inference",
    "feedback",
    "training",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "axes.middleware.AxesMiddleware",
    "accounts.middleware.RefusalMiddleware",
]

ROOT_URLCONF = "config.urls"
ASGI_APPLICATION = "config.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "accounts.context_processors.navigation",
            ],
        },
    },
]

# Database and broker: the two URLs, or the embedded servers that `make up` starts
DATABASE_POOL_SIZE = env_int("DATABASE_POOL_SIZE", 16)


def _database(url: str) -> dict[str, Any]:
    """Return Django's settings for a libpq URL, which may name a unix socket as its host."""
    parts = psycopg.conninfo.conninfo_to_dict(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.get("dbname", "laurel"),
        "USER": parts.get("user", ""),
        "PASSWORD": parts.get("password", ""),
        "HOST": parts.get("host", ""),
        "PORT": parts.get("port", ""),
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {
            # Under ASGI every request has a thread of its own, so connections must be pooled.
            "pool": {"min_size": 0, "max_size": DATABASE_POOL_SIZE, "timeout": 10},
            # Only accounts.statements prepares; False for a pooler that cannot carry it.
            "prepare_threshold": 0 if env_bool("DATABASE_PREPARE", True) else None,
        },
    }


DATABASES = {"default": _database(services.database_url())}
REDIS_URL = services.redis_url()
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": REDIS_URL}
}

# Accounts
AUTH_USER_MODEL = "accounts.User"
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "django.contrib.auth.backends.ModelBackend",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "login"
AXES_FAILURE_LIMIT = 10
AXES_COOLOFF_TIME = timedelta(minutes=10)
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_LOCKOUT_TEMPLATE = "accounts/locked_out.html"
AXES_VERBOSE = False

KNOX_TOKEN_MODEL = "accounts.ApiToken"
# Knox's migrations make a table for the model that ours replaces.
MIGRATION_MODULES = {"knox": None}
REST_KNOX = {
    "AUTH_HEADER_PREFIX": "Bearer",
    "TOKEN_TTL": timedelta(days=90),
    "TOKEN_PREFIX": "laurel_",
}

# REST
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "accounts.authentication.ApiTokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["accounts.parsing.JSONParser"],
    # What can be asked stands in the schema; OPTIONS tells nobody anything.
    "DEFAULT_METADATA_CLASS": None,
    "DEFAULT_SCHEMA_CLASS": "accounts.schema.LaurelSchema",
    "EXCEPTION_HANDLER": "accounts.errors.exception_handler",
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Laurel",
    "DESCRIPTION": (
        "Judgements in, better adapters out. Send “Authorization: Bearer laurel_…”, a token from "
        "a project's settings; it stands for one project. Lists are pages: go on at `next`. A "
        "refusal has one sentence in `message`. Chat is at /v1/chat/completions, as the openai "
        "client speaks it; `model` is an alias such as production, or a version. docs/training.md "
        "and docs/datasets.md show it from end to end."
    ),
    "VERSION": "0.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "SCHEMA_PATH_PREFIX": "/api/",
    "ENUM_NAME_OVERRIDES": {
        "MemberRole": "accounts.models.Role",
        "WebhookEvent": "accounts.models.Event",
        "CampaignKind": "feedback.models.Campaign.Kind",
        "CampaignState": "feedback.models.Campaign.State",
        "ImportState": "feedback.models.FileImport.State",
        "Wanted": "feedback.extras.Wanted",
        "SnapshotKind": "training.options.Kind",
        "TrainingMethod": "training.engine.arguments.METHODS",
        "MoveKind": "inference.models.AliasMove.Kind",
        "RetractionKind": "training.models.Retraction.Kind",
        "DraftKind": "feedback.models_drafts.DraftRequest.Kind",
        "DraftState": "feedback.models_drafts.Draft.State",
        "DraftRequestState": "feedback.models_drafts.DraftRequest.State",
    },
}

# Snapshots lie in a folder, or in s3://bucket/prefix; boto3 itself reads AWS_ENDPOINT_URL,
# AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION, or a role.
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    **snapshot_storage(os.environ.get("SNAPSHOT_STORAGE", "")),
}

# Celery: the database is the truth, the broker only rings the bell
CELERY_BROKER_URL = REDIS_URL
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_DEFAULT_QUEUE = "default"
CELERY_TASK_ROUTES = {"training.tasks.execute_run": {"queue": "train"}}
# A task whose worker was killed is given out again after this long. Every task may run twice:
# it claims its row, or finds what is done and goes on from there.
CELERY_BROKER_TRANSPORT_OPTIONS = {"visibility_timeout": 600}
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_TIMEZONE = "UTC"
CELERY_BEAT_SCHEDULE = {
    "keep engines warm": {"task": "inference.tasks.keep_engines_warm", "schedule": 5.0},
    "advance rebuilds": {"task": "training.tasks.advance_rebuilds", "schedule": 10.0},
    "tick schedules": {"task": "training.tasks.tick_schedules", "schedule": 15.0},
    "sweep runs": {"task": "training.tasks.sweep_runs", "schedule": 10.0},
    "sweep builds": {"task": "training.tasks.sweep_builds", "schedule": 10.0},
    "settle evaluations": {"task": "training.tasks.settle_evaluations", "schedule": 10.0},
    "resume stalled generations": {
        "task": "feedback.tasks.resume_stalled_generations",
        "schedule": 30.0,
    },
    "resume imports": {"task": "feedback.tasks.resume_imports", "schedule": 30.0},
    "rank campaigns": {"task": "feedback.tasks.rank_campaigns", "schedule": 15.0},
    "resume stalled drafts": {"task": "feedback.tasks.resume_stalled_drafts", "schedule": 30.0},
    "test trust": {"task": "feedback.tasks.watch_trust", "schedule": 30.0},
    "tell completed campaigns": {
        "task": "feedback.tasks.tell_completed_campaigns",
        "schedule": 60.0,
    },
    "deliver webhooks": {"task": "accounts.tasks.deliver_webhooks", "schedule": 5.0},
    "forget webhook messages": {
        "task": "accounts.tasks.forget_webhook_messages",
        "schedule": 86_400.0,
    },
}
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"

# Language and time
LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True

# Static files, served by the web process itself
STATIC_URL = "static/"

STATICFILES_DIRS = [BASE_DIR / "static"]
WHITENOISE_USE_FINDERS = True
WHITENOISE_MAX_AGE = 3600

# Product
ARTIFACTS_DIR = VAR_DIR / "artifacts"
# What was read of a bucket; may be deleted.
COPIES_DIR = VAR_DIR / "copies"
RUNS_DIR = VAR_DIR / "runs"
BASES_DIR = VAR_DIR / "bases"
DEFAULT_BASE = env_base()[1]
ENGINE_URLS = env_list("ENGINE_URL", [f"http://127.0.0.1:{env_int('ENGINE_PORT', 8101)}"])
ENGINE_API_KEY = env_secret("ENGINE_API_KEY", VAR_DIR / "engine_key")
# Where a chat names no limit: an engine's own would be the rest of its context.
DEFAULT_MAX_TOKENS = env_int("DEFAULT_MAX_TOKENS", 1024)
ENGINE_TIMEOUT_SECONDS = env_int("ENGINE_TIMEOUT_SECONDS", 300)
LEASE_SECONDS = env_int("LEASE_SECONDS", 15 * 60)
RUN_HEARTBEAT_SECONDS = env_int("RUN_HEARTBEAT_SECONDS", 5)
RUN_STALE_SECONDS = env_int("RUN_STALE_SECONDS", 30)
RUN_MAX_ATTEMPTS = env_int("RUN_MAX_ATTEMPTS", 5)
# Functions that may judge evaluations; naming one runs it, so only a site's own are allowed.
EVALUATION_RULES = env_list("EVALUATION_RULES", ["training.rules:concise"])
# Off: an admin of one project could post into the site's own network.
WEBHOOKS_TO_PRIVATE_ADDRESSES = env_bool("WEBHOOKS_TO_PRIVATE_ADDRESSES", False)
# Who decides whether a version is proposed for an alias; asked before every promotion.
PROMOTION_GATE = "training.gate.check_promotion"
# What an hour of the trainer costs; 0 says nothing about money.
PRICE_PER_HOUR = env_float("PRICE_PER_HOUR", 0.0)
PRICE_CURRENCY = os.environ.get("PRICE_CURRENCY", "EUR")
RUN_LAUNCHER = os.environ.get("RUN_LAUNCHER", "local")
# With accelerate: how many processes (0: as its own file says), and what each holds of the base:
# ddp all of it, fsdp a share.
RUN_PROCESSES = env_int("RUN_PROCESSES", 0)
RUN_SHARDING = os.environ.get("RUN_SHARDING", "ddp")

# Logs: one JSON line an event, no secret in it
LOG_LEVEL = os.environ.get("LOG_LEVEL", "INFO")
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    cache_logger_on_first_use=True,
)
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {
            "()": structlog.stdlib.ProcessorFormatter,
            "processor": structlog.processors.JSONRenderer(),
            "foreign_pre_chain": [
                structlog.stdlib.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
            ],
        }
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["stderr"], "level": LOG_LEVEL},
    "loggers": {
        "httpx": {"level": "WARNING"},
        "httpcore": {"level": "WARNING"},
        "axes": {"level": "WARNING"},
        # Two lines a tick of beat say nothing that a failure would not say louder.
        "celery.app.trace": {"level": "WARNING"},
        "celery.beat": {"level": "WARNING"},
        "celery.worker.strategy": {"level": "WARNING"},
    },
}
