# Waits while a test says so.
while [ -e "/run/bed-$1" ]; do sleep 0.05; done
