"""Running as a service: log lines, systemd's notifications, an orderly end."""
