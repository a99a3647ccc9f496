"""What several tests share: the fake host, its fixtures and the recorder that makes them."""
