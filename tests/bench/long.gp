# What a long run saw over its length: time, memory and loss, from the CSV of bench-long.
#   gnuplot -e 'csv="long.csv"; svg="long.svg"; title="…"' tests/bench/long.gp
set terminal svg size 900,620 background "white"
set output svg
set datafile separator ","
set datafile commentschars "#t"
set xlabel "tokens of a stream, millions"
set key outside right
set multiplot layout 3,1 title title
set yrange [0:*]
set ylabel "s a chunk"
plot csv using ($1/1e6):2 with lines lw 2 title "of all streams"
set ylabel "MB"
plot csv using ($1/1e6):($4/1e6) with lines lw 2 title "resident", \
     csv using ($1/1e6):($5/1e6) with lines lw 2 title "device"
set ylabel "nats a token"
plot csv using ($1/1e6):6 with lines lw 2 title "first stream"
unset multiplot
