# Memory and speed over one endless stream, from the CSV of build/endless.
set terminal svg size 900,520 background "white"
set output svg
set datafile separator ","
set datafile commentschars "#"
set xlabel "tokens read"
set format x "%.0s%c"
set key bottom right
set multiplot layout 2,1
set ylabel "MB"
set yrange [0:*]
plot csv using 2:($4/1e6) skip 1 with lines lw 2 title "resident, whole process", \
     csv using 2:($5/1e6) skip 1 with lines lw 2 title "in use by the stream"
set ylabel "tokens/s"
p = 0; q = 0
plot csv using 2:(d = $2 - p, t = $1 - q, p = $2, q = $1, t > 0 ? d / t : NaN) skip 1 \
     with points pt 7 ps 0.3 lc 3 title "speed, each sample"
unset multiplot
