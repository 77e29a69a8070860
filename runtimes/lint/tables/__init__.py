"""What target runtimes take: tables recorded from the runtimes themselves, and how to record them anew."""
