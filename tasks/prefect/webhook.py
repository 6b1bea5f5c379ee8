"""Tell a webhook how a run ended."""

import logging
import os
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from httpx2 import HTTPError, InvalidURL
from httpx2 import post as post_json

from pruneflow.settings.pipeline import NotifySettings

VARIABLE = "PRUNEFLOW_WEBHOOK"
ATTEMPTS = 3
TIMEOUT = 5.0  # seconds an attempt
PAUSE = 1.0  # seconds between attempts


def webhook(settings: NotifySettings) -> str | None:
    """Return the URL that hears of runs: the setting's, or else the environment's; None without."""
    return settings.webhook or os.environ.get(VARIABLE) or None


def mask(url: str) -> str:
    """Name a webhook without what is secret about it: user, password, path and query."""
    try:
        parts = urlsplit(url)
    except ValueError:  # what is between the brackets of a host is no address
        return "the webhook"
    return f"{parts.scheme}://{parts.hostname}/..."


def post(url: str, message: Mapping[str, Any]) -> str | None:
    """Send a message as JSON; returns why it could not be sent, or None.

    A webhook that refuses it is not asked again, one that does not answer or is out of order is.
    """
    # It would log every URL it asks, and a webhook's URL is its password.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    problem = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE)
        try:
            status = post_json(url, json=dict(message), timeout=TIMEOUT).status_code
        except (HTTPError, InvalidURL) as error:
            problem = f"{mask(url)} does not answer ({type(error).__name__})"
            continue
        if status < 300:
            return None
        problem = f"{mask(url)} answered with status {status}"
        if status < 500:
            break
    return problem
