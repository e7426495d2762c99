# ranking
