"""What people look at: the page, the summary in Markdown, pictures, and the plot of a terminal."""
