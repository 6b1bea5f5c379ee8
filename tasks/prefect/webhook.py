"""Send a message to a webhook with Prefect's Webhook block, whose URL is a secret."""

import logging
import os
import time
from typing import Any
from urllib.parse import urlsplit

from httpx import HTTPError, InvalidURL, Response
from prefect.blocks.webhook import Webhook
from prefect.utilities.asyncutils import run_coro_as_sync

from pruneflow.settings.pipeline import NotifySettings

VARIABLE = "PRUNEFLOW_WEBHOOK"
ATTEMPTS = 3
PAUSE = 1.0  # seconds between attempts


def webhook_url(settings: NotifySettings) -> str | None:
    """Return the webhook's URL, from the settings or else the environment; None without one."""
    return settings.webhook or os.environ.get(VARIABLE) or None


def without_secrets(url: str) -> str:
    """Return a webhook's URL without its secrets: user, password, path and query."""
    try:
        parts = urlsplit(url)
    except ValueError:  # e.g. an invalid IPv6 address
        return "the webhook"
    return f"{parts.scheme}://{parts.hostname}/..."


def send(url: str, message: dict[str, Any]) -> str | None:
    """Post a message as JSON; returns the error, or None.

    Connection errors and statuses from 500 are retried, which neither the block nor httpx does.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it logs every URL
    error = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE)
        try:
            response: Response = run_coro_as_sync(Webhook(url=url).call(message))
        except (HTTPError, InvalidURL) as failure:
            error = f"{without_secrets(url)} does not answer ({type(failure).__name__})"
            continue
        if response.is_success:
            return None
        error = f"{without_secrets(url)} answered with status {response.status_code}"
        if response.status_code < 500:
            break
    return error
