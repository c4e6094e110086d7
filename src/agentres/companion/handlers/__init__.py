"""Handlers: deliver alerts to people and programs."""

from agentres.companion.handlers.dispatch import Dispatcher

__all__ = ["Dispatcher"]
