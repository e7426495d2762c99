# bucket
