"""Provides what a service needs: logs, systemd notifications, worker threads, HTTP pages, signals."""
