# Memory, speed and recall over one endless stream, from the CSV of build/endless.
set terminal svg size 900,860 background "white"
set output svg
set datafile separator ","
set datafile commentschars "#"
set xlabel "tokens read"
set format x "%.0s%c"
set key below
stats csv using 12 skip 1 nooutput # the loss meter's: nothing where it had no time to score
set multiplot layout 4,1
set ylabel "MB"
set yrange [0:*]
plot csv using (column("tokens_computed")):(column("resident_bytes")/1e6) with lines lw 2 title "resident, whole process", \
     csv using (column("tokens_computed")):(column("used_bytes")/1e6) with lines lw 2 title "in use by the stream"
set ylabel "ms a chunk"
p = 0; q = 0
plot csv using (column("tokens_computed")):(d = $2 - p, t = column("cpu_seconds") - q, p = $2, q = column("cpu_seconds"), \
     d > 0 && q > t ? 256e3 * t / d : NaN) every 10 with linespoints pt 7 ps 0.3 lc 3 title "of the processor"
set ylabel "facts"
plot csv using (column("tokens_computed")):(column("recall_asked")) with lines lw 4 lc rgb "#bbbbbb" title "asked for", \
     csv using (column("tokens_computed")):(column("recall_found")) with lines lw 2 title "found among the sources", \
     csv using (column("tokens_computed")):(column("recall_answered")) with lines lw 2 title "in the answer"
set ylabel "nats a token"
set yrange [*:*]
if (STATS_max > 0) plot csv using (column("tokens_computed")):(column("nll") > 0 ? column("nll") : NaN) with lines lw 2 title "loss with the memory, so far", \
     csv using (column("tokens_computed")):(column("nll") > 0 ? column("nll") - column("loss") : NaN) with lines lw 2 title "with 2,048 raw tokens"
unset multiplot
