"""What measured accuracies and latencies come to: who is kept, who not, and who is chosen."""
