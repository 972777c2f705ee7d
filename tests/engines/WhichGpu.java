import static java.util.stream.Collectors.joining;

import java.io.FileWriter;
import java.io.IOException;
import java.io.Writer;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.functions.RichMapFunction;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;

/** A job in Java: each operator reports, again and again, for which TaskManager it works, and its GPUs. */
public class WhichGpu extends RichMapFunction<Long, Long> {
    private final String folder;
    private transient String told;
    private transient Writer report;

    WhichGpu(String folder) {
        this.folder = folder;
    }

    /** Arguments: the folder of the reports, and for how many values. */
    public static void main(String[] arguments) throws Exception {
        StreamExecutionEnvironment environment = StreamExecutionEnvironment.getExecutionEnvironment();
        environment.fromSequence(1, Long.parseLong(arguments[1])).map(new WhichGpu(arguments[0]));
        environment.execute("which GPU, in Java");
    }

    @Override
    public void open(OpenContext context) throws IOException {
        String indices = getRuntimeContext().getExternalResourceInfos("gpu").stream()
                .map(info -> info.getProperty("index").get())
                .sorted()
                .collect(joining(","));
        long pid = ProcessHandle.current().pid();
        told = pid + " " + pid + " " + indices + " " + System.getenv().getOrDefault("CUDA_VISIBLE_DEVICES", "unset");
        int subtask = getRuntimeContext().getTaskInfo().getIndexOfThisSubtask();
        report = new FileWriter(folder + "/java-" + pid + "-" + subtask, true);
        write();
    }

    @Override
    public Long map(Long value) throws Exception {
        Thread.sleep(10);
        write();
        return value;
    }

    @Override
    public void close() throws IOException {
        if (report != null) {
            report.close();
        }
    }

    /** One line: when (on Linux this is CLOCK_MONOTONIC), the reporter, its TaskManager, its GPUs, its mask. */
    private void write() throws IOException {
        report.write(System.nanoTime() + " " + told + "\n");
        report.flush();
    }
}
