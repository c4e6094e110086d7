"""Telling people and programs of alerts."""

from agentres.companion.handlers.dispatch import Dispatcher

__all__ = ["Dispatcher"]
