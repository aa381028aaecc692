# What a soak saw over time: memory, disk and one figure of its own, from the CSV of soak/*.py.
set terminal svg size 900,620 background "white"
set output svg
set datafile separator ","
set datafile commentschars "#"
set xlabel "minutes"
set key outside right
set multiplot layout 3,1 title title
set ylabel "MB"
set yrange [0:*]
if (title eq "budget") {
    plot csv using ($1/60):(column("plan_bytes")/1e6) with lines lw 2 lc 7 title "planned", \
         csv using ($1/60):(column("resident_bytes")/1e6) with lines lw 2 lc 1 title "resident"
    set ylabel "tokens, millions"
    plot csv using ($1/60):(column("tokens")/1e6) with lines lw 2 title "fed, then computed"
} else {
    plot csv using ($1/60):(column("resident_bytes")/1e6) with lines lw 2 title "resident"
}
set ylabel "MB on disk"
if (title eq "feed") {
    set ylabel "MB of text"
    plot csv using ($1/60):(column("written_bytes")/1e6) with lines lw 3 title "written", \
         csv using ($1/60):(column("acked_bytes")/1e6) with lines lw 1 lc rgb "black" title "acked"
    set ylabel "so far"
    plot csv using ($1/60):(column("rotations")) with lines lw 2 title "rotations", \
         csv using ($1/60):(column("kills")) with steps lw 2 title "kills"
}
if (title ne "feed" && title ne "budget") {
    plot csv using ($1/60):(column("disk_bytes")/1e6) with lines lw 2 lc 3 title "disk"
}
if (title eq "flat") {
    set ylabel "processor s a piece"
    plot csv using ($1/60):(column("on_cpu")) with points pt 7 ps 0.4 title "with cold segments", \
         csv using ($1/60):(column("off_cpu")) with points pt 6 ps 0.4 title "with none"
}
if (title eq "churn") {
    set ylabel "so far"
    set y2label "tokens/s"
    set y2tics
    plot csv using ($1/60):(column("operations")) with lines lw 2 title "operations", \
         csv using ($1/60):(column("tokens_per_second")) axes x1y2 with points pt 7 ps 0.4 title "of a check"
}
if (title eq "chaos") {
    set ylabel "so far"
    plot csv using ($1/60):(column("faults")) with lines lw 2 title "faults", \
         csv using ($1/60):(column("recall_asked")) with lines lw 3 title "facts asked for", \
         csv using ($1/60):(column("recall_found")) with lines lw 1 lc rgb "black" title "facts found"
}
unset multiplot
